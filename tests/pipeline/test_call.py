"""A model called as the pipelines of diffusers are."""

import re

import numpy as np
import pytest
import torch

from dalle_mini_impl import UserError


def ids_of(results):
    return torch.stack([candidate.image_ids for result in results for candidate in result])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_pictures_of_a_call_are_those_of_generate(tiny_dalle):
    output = tiny_dalle(
        ["a red heart", "a cat"],
        num_images_per_prompt=3,
        generator=seeded(),
        guidance_scale=1.5,
        negative_prompt=["a cat", ""],
        temperature=0.8,
    )
    assert len(output.images) == 6
    for number, (prompt, negative) in enumerate((("a red heart", "a cat"), ("a cat", ""))):
        seeds = [candidate.seed for candidate in output.results[number]]
        settings = {"guidance": 1.5, "temperature": 0.8, "rank": "none"}
        alone = tiny_dalle.generate(prompt, negative=negative, seeds=seeds, **settings)
        for image, candidate in zip(output.images[3 * number : 3 * number + 3], alone, strict=True):
            assert np.array_equal(np.asarray(image), np.asarray(candidate.image))


def test_a_generator_repeats_pictures_and_moves_on(tiny_dalle):
    generator = seeded(5)
    first = tiny_dalle("a cat", num_images_per_prompt=2, generator=generator)
    second = tiny_dalle("a cat", num_images_per_prompt=2, generator=generator)
    again = tiny_dalle("a cat", num_images_per_prompt=4, generator=seeded(5))
    assert torch.equal(ids_of(again.results), torch.cat([ids_of(first.results), ids_of(second.results)]))
    assert not torch.equal(ids_of(first.results), ids_of(second.results))


def test_each_picture_can_have_a_generator_of_its_own(tiny_dalle):
    both = tiny_dalle("a cat", num_images_per_prompt=2, generator=[seeded(3), seeded(7)])
    alone = [tiny_dalle("a cat", generator=seeded(seed)) for seed in (3, 7)]
    assert torch.equal(ids_of(both.results), torch.cat([ids_of(one.results) for one in alone]))


def test_without_a_generator_torch_says_which_pictures(tiny_dalle):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(tiny_dalle("a cat").results[0][0].seed)
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_best_of_more_candidates_come_first(tiny_dalle):
    output = tiny_dalle("a cat", num_images_per_prompt=2, candidates=5, generator=seeded())
    (result,) = output.results
    every = tiny_dalle("a cat", num_images_per_prompt=5, generator=seeded()).results[0]
    ranked = tiny_dalle.generate("a cat", seeds=[candidate.seed for candidate in every], keep=2)
    assert [candidate.seed for candidate in result] == [candidate.seed for candidate in ranked]
    assert (
        result.settings["sampling"]["rank"] == tiny_dalle.generate("a cat", candidates=1).settings["sampling"]["rank"]
    )


def test_pictures_come_as_tensor_array_or_tuple(tiny_dalle):
    drawn = {
        kind: tiny_dalle("a cat", num_images_per_prompt=2, generator=seeded(), output_type=kind).images
        for kind in ("pil", "pt", "np")
    }
    expected = np.stack([np.asarray(image) for image in drawn["pil"]])
    assert drawn["np"].shape == (2, 24, 40, 3)
    assert drawn["np"].dtype == np.float32
    assert np.array_equal((drawn["np"] * 255).round(), expected)
    assert torch.equal(drawn["pt"], torch.from_numpy(drawn["np"]).permute(0, 3, 1, 2))
    (images,) = tiny_dalle("a cat", num_images_per_prompt=2, generator=seeded(), return_dict=False)
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), expected)
    transparent = tiny_dalle("a cat", generator=seeded(), output_type="pt", transparent=True).images
    assert transparent.shape == (1, 4, 24, 40)


def test_a_callback_sees_every_step_and_changes_no_picture(tiny_dalle):
    calls = []

    def callback(dalle, step, timestep, tensors):
        assert dalle is tiny_dalle
        calls.append((step, timestep, tensors["image_ids"]))
        return tensors

    options = {"num_images_per_prompt": 3, "chunk": 3}
    shown = tiny_dalle(["a cat", "a red heart"], generator=seeded(), callback_on_step_end=callback, **options)
    plain = tiny_dalle(["a cat", "a red heart"], generator=seeded(), **options)
    assert torch.equal(ids_of(shown.results), ids_of(plain.results))
    assert [step for step, _, _ in calls] == [*range(30)]
    assert [timestep for _, timestep, _ in calls] == [*range(14, -1, -1)] * 2
    assert torch.equal(calls[14][2].reshape(3, 3, 5), ids_of(plain.results[:1]))
    assert torch.equal(calls[3][2], calls[14][2][:, :4])  # those of a step stay as they were


def test_an_exception_of_the_callback_ends_the_call(tiny_dalle):
    def stop(dalle, step, timestep, tensors):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_dalle("a cat", callback_on_step_end=stop)


def test_what_the_model_itself_decides_may_be_said(tiny_dalle):
    output = tiny_dalle("a cat", height=24, width=40, num_inference_steps=15, negative_prompt=None, chunk=None)
    assert output.images[0].size == (40, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": None}, "expected a text or a list of texts as prompt, got None"),
        ({"prompt": []}, "as prompt, got []; give at least one"),
        ({"prompt": ["a cat", 3]}, "as prompt, got ['a cat', 3]"),
        ({"negative_prompt": 3}, "as negative_prompt, got 3"),
        ({"negative_prompt": ["a", "b", "c"]}, "or one for each of 2 prompts, got 3"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt of 1 or more"),
        ({"num_images_per_prompt": 2.5}, "num_images_per_prompt of 1 or more"),
        ({"num_images_per_prompt": 10**15}, "candidates to fit into"),
        ({"num_images_per_prompt": 4, "candidates": 3}, "at least as many candidates, got 4 and 3"),
        ({"generator": 3}, "expected torch.Generator as generator, got int"),
        ({"generator": [torch.Generator()]}, "one for each of 2 candidates, got 1"),
        ({"output_type": "latent"}, "expected output_type pil, pt, np, got 'latent'"),
        ({"height": 512}, "expected height 24, the model's own, got 512; leave it out"),
        ({"num_inference_steps": 50}, "expected num_inference_steps 15, the model's own, got 50"),
        ({"latents": torch.zeros(1)}, "expected arguments that a token model has, got latents"),
        ({"guidance": 2.0}, "expected arguments that a token model has, got guidance"),
        ({"guidance_scale": float("nan")}, "guidance"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "got 'latents'; a token model has no other tensors"),
        ({"callback_on_step_end": lambda *_: {"image_ids": 1}}, "sampled ids cannot be changed"),
    ],
)
def test_what_a_call_cannot_do_is_one_line(tiny_dalle, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        tiny_dalle(**{"prompt": ["a cat", "a dog"], **arguments})
    assert "\n" not in str(caught.value)
