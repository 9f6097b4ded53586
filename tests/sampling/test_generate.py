import copy

import pytest
import torch
from helpers import reference
from helpers.models import GRID, make_transformer
from helpers.sampling import PROMPT, SETTINGS, sample

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import Prompt
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.util.errors import UserError


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize(
    ("settings", "prompt", "seeds"),
    [
        (SETTINGS, PROMPT, [3, 2**32 - 1]),
        (SETTINGS, Prompt((5, 300, 17)), [5]),
        (SamplingConfig(temperature=1.0, guidance=1.0), PROMPT, [7]),
        (SamplingConfig(temperature=1.0, guidance=1.0), Prompt(()), [11]),
        (SamplingConfig(temperature=0.0, guidance=4.0), PROMPT, [0]),
        (SamplingConfig(temperature=0.7, top_k=5, guidance=0.0), PROMPT, [2]),
    ],
    ids=["all", "no negative", "no guidance", "empty caption", "greedy", "guidance 0"],
)
def test_generate_equals_the_uncached_unbatched_reference(position, settings, prompt, seeds):
    transformer, stream = make_transformer(position)
    image_ids = sample((transformer, stream), seeds, prompt, settings).image_ids
    captions = list(prompt.text_ids), list(prompt.negative_ids)
    for ids, seed in zip(image_ids, seeds, strict=True):
        assert torch.equal(ids, reference.generate(transformer, stream, captions, seed, settings))


@pytest.mark.parametrize("chunk", [2, 64])
def test_log_likelihoods_are_the_models_own_whatever_the_settings(model, chunk):
    guided = sample(model, [3, 5, 8], chunk=chunk)
    expected, negative = (
        log_likelihood(*model, ids, guided.image_ids).sum(1) for ids in (PROMPT.text_ids, PROMPT.negative_ids)
    )
    torch.testing.assert_close(guided.log_likelihood, expected, rtol=1e-5, atol=1e-4)
    assert float((expected - negative).abs().min()) > 1e-2  # otherwise the two could be swapped
    plain = sample(model, [3, 5, 8], settings=SamplingConfig(temperature=0.3, guidance=1.0), chunk=chunk)
    expected = log_likelihood(*model, PROMPT.text_ids, plain.image_ids).sum(1)
    torch.testing.assert_close(plain.log_likelihood, expected, rtol=1e-5, atol=1e-4)


def test_the_stream_is_as_long_as_the_models_positions(model):
    transformer, stream = model
    assert isinstance(stream, Stream)
    assert transformer.max_length == stream.length


# --- a candidate depends on its seed alone


def test_a_candidate_does_not_depend_on_the_others_or_the_chunks(model):
    seeds = list(range(100, 137))
    image_ids = sample(model, seeds).image_ids
    assert image_ids.shape == (37, *GRID)
    assert len(image_ids.flatten(1).unique(dim=0)) == 37  # each seed gives another picture
    for index in (0, 17, 36):
        assert torch.equal(sample(model, [seeds[index]]).image_ids[0], image_ids[index])
    for chunk in (3, 7):
        assert torch.equal(sample(model, seeds, chunk=chunk).image_ids, image_ids)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(sample(model, [seeds[index] for index in order]).image_ids, image_ids[order])


def test_equal_seeds_give_equal_pictures(model):
    image_ids = sample(model, [5, 11, 5]).image_ids
    assert torch.equal(image_ids[0], image_ids[2])
    assert not torch.equal(image_ids[0], image_ids[1])


def test_greedy_candidates_are_all_alike(model):
    image_ids = sample(model, [1, 2, 3], settings=SamplingConfig(temperature=0.0)).image_ids
    assert len(image_ids.flatten(1).unique(dim=0)) == 1


def test_the_global_random_state_is_neither_used_nor_changed(model):
    torch.manual_seed(0)
    first = sample(model, [7]).image_ids
    state = torch.get_rng_state()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(sample(model, [7]).image_ids, first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


# --- which ids the model gets and gives


def test_every_image_id_and_no_text_id_is_sampled():
    transformer, stream = make_transformer()
    with torch.no_grad():  # text ids get far greater logits at every position
        transformer.head.weight[: stream.image_offset] *= 1000
    settings = SamplingConfig(temperature=5.0, guidance=1.0)
    image_ids = sample((transformer, stream), range(101), settings=settings).image_ids
    assert image_ids.dtype == torch.int64
    assert int(image_ids.min()) >= 0
    assert int(image_ids.max()) < stream.config.image_vocab
    assert len(image_ids.unique()) == stream.config.image_vocab


def test_the_model_gets_the_prompt_and_then_one_image_id_per_candidate_and_caption(model):
    transformer, stream = model
    inputs = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    sample(model, [1, 2, 3])
    hook.remove()
    prompt, *steps = inputs
    assert torch.equal(prompt, stream.prefix([PROMPT.text_ids, PROMPT.negative_ids]))
    assert len(steps) == stream.image_length - 1
    for ids in steps:
        assert ids.shape == (6, 1)  # with and without caption in one pass
        assert stream.image_offset <= int(ids.min()) <= int(ids.max()) < stream.vocab_size
        assert torch.equal(ids[:3], ids[3:])


@pytest.mark.parametrize(("guidance", "rows"), [(2.5, 2), (1.0, 1)])
def test_the_prompt_is_run_once_for_all_candidates(model, guidance, rows):
    transformer, _ = model
    shapes = []
    hook = transformer.embed.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    sample(model, range(11), settings=SamplingConfig(guidance=guidance), chunk=5)
    hook.remove()
    assert shapes[0] == (rows, 8)
    assert [shape[1] for shape in shapes[1:]] == [1] * 3 * 14
    assert [shape[0] for shape in shapes[1::14]] == [5 * rows, 5 * rows, rows]


# --- guidance


def test_guidance_1_ignores_the_negative_caption(model):
    settings = SamplingConfig(temperature=0.9, top_k=31, guidance=1.0)
    plain = sample(model, [1, 2, 3], Prompt(PROMPT.text_ids), settings).image_ids
    negative = sample(model, [1, 2, 3], Prompt(PROMPT.text_ids, (9, 9, 9)), settings).image_ids
    assert torch.equal(negative, plain)
    # and so does guidance close to 1, which runs the negative caption
    settings = SamplingConfig(temperature=0.9, top_k=31, guidance=1.0 + 1e-7)
    assert torch.equal(sample(model, [1, 2, 3], PROMPT, settings).image_ids, plain)


def test_guidance_0_ignores_the_caption(model):
    guidance_0 = SamplingConfig(temperature=0.9, top_k=31, guidance=0.0)
    no_guidance = SamplingConfig(temperature=0.9, top_k=31, guidance=1.0)
    expected = sample(model, [1, 2, 3], Prompt(PROMPT.negative_ids), no_guidance).image_ids
    assert torch.equal(sample(model, [1, 2, 3], PROMPT, guidance_0).image_ids, expected)


def test_caption_negative_caption_and_guidance_all_change_the_pictures(model):
    first = sample(model, [1, 2, 3]).image_ids
    for other in (
        sample(model, [1, 2, 3], Prompt((5, 300, 18), PROMPT.negative_ids)),
        sample(model, [1, 2, 3], Prompt(PROMPT.text_ids)),
        sample(model, [1, 2, 3], settings=SamplingConfig(temperature=0.9, top_k=31, top_p=0.95, guidance=2.0)),
    ):
        assert not torch.equal(first, other.image_ids)


def test_guidance_away_from_the_caption_itself_is_no_guidance(model):
    prompt = Prompt(PROMPT.text_ids, PROMPT.text_ids)
    guided, plain = (
        sample(model, [1, 2, 3], prompt, SamplingConfig(temperature=0.9, guidance=guidance)).image_ids
        for guidance in (7.0, 1.0)
    )
    assert torch.equal(guided, plain)


# --- what must not change, and progress


def test_model_and_arguments_are_not_changed():
    transformer, stream = make_transformer()
    text_ids, negative_ids, seeds = [5, 300], [41], [1, 2, 3]
    state = copy.deepcopy(transformer.state_dict())
    attributes = set(vars(transformer)), set(vars(stream))
    image_ids = sample((transformer, stream), seeds, Prompt(text_ids, negative_ids), chunk=2).image_ids
    log_likelihood(transformer, stream, text_ids, image_ids)
    assert (text_ids, negative_ids, seeds) == ([5, 300], [41], [1, 2, 3])
    assert all(torch.equal(value, state[name]) for name, value in transformer.state_dict().items())
    assert (set(vars(transformer)), set(vars(stream))) == attributes


def test_progress_adds_up_to_every_id(model):
    calls: list[int] = []
    sample(model, range(7), chunk=3, progress=calls.append)
    assert sum(calls) == 7 * 15
    assert calls[:15] == [3] * 15
    assert calls[-1] == 1


# --- errors


def test_no_seeds_are_refused(model):
    with pytest.raises(UserError, match="expected at least one seed, got none; give one per candidate"):
        sample(model, [])


def test_settings_are_checked_against_the_number_of_image_ids(model):
    with pytest.raises(UserError, match="expected top_k from 0 to 61, got 62"):
        sample(model, [1], settings=SamplingConfig(top_k=62))


def test_captions_that_are_too_long_are_refused(model):
    with pytest.raises(UserError, match="expected captions of up to 7 text ids, got 8"):
        sample(model, [1], Prompt((1,) * 8))
    with pytest.raises(UserError, match="got 8"):
        sample(model, [1], Prompt((1,), (1,) * 8))


@pytest.mark.parametrize("chunk", [0, -3])
def test_chunks_of_no_candidates_are_refused(model, chunk):
    with pytest.raises(UserError, match=f"chunk of at least 1 candidate, got {chunk}"):
        sample(model, [1], chunk=chunk)
