"""How a picture was sampled."""

import shutil

import pytest
import torch
from helpers.priors import add_prior, take_embeddings

from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.walkthrough import walk_through
from dalle_mini_impl.sampling.likelihood import log_likelihood


def steps_of(dalle, keep=5, **options):
    result = dalle.generate("a red heart", candidates=1, keep=1, seed=3, **options)
    request = dalle.request("a red heart", **options)
    ids = result[0].image_ids
    return ids, walk_through(dalle.caption_model, dalle.transformer, dalle.stream, request, ids, keep)


def test_pieces_spell_the_caption(tiny_dalle):
    _, steps = steps_of(tiny_dalle)
    assert "".join(piece for _, piece in steps.pieces).replace("\u2581", " ").strip() == "a red heart"
    assert [text_id for text_id, _ in steps.pieces] == tiny_dalle.encode("a red heart")


def test_every_cell_is_sampled_once_in_the_order_of_the_stream(tiny_dalle):
    ids, steps = steps_of(tiny_dalle)
    h, w = tiny_dalle.stream.config.grid
    assert steps.cells == [(row, column) for row in range(h) for column in range(w)]
    assert steps.image_ids.tolist() == ids.flatten().tolist()


def test_without_guidance_the_probabilities_are_the_model_s_own(tiny_dalle):
    ids, steps = steps_of(tiny_dalle, guidance=1.0, temperature=1.0, top_k=0, top_p=1.0)
    expected = tiny_dalle.log_likelihood("a red heart", ids[None])[0].exp()
    torch.testing.assert_close(steps.probability, expected, rtol=1e-3, atol=1e-6)
    assert (steps.probabilities[:, :-1] >= steps.probabilities[:, 1:]).all()


@pytest.mark.parametrize("prior", ["ar", "none"])
def test_probabilities_are_those_given_the_image_embedding(tiny_model, tmp_path, prior):
    model = add_prior(take_embeddings(shutil.copytree(tiny_model, tmp_path / "model")), "ar")
    dalle = DalleMini.from_pretrained(model, "cpu")
    embed = dalle.prior.draw(["a cat"], [7])[0].tolist()
    given = {"prior": "ar"} if prior == "ar" else {"image_embed": embed}
    options = {**given, "seeds": [7], "guidance": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    image_ids = dalle.generate("a cat", rank="none", **options)[0].image_ids
    known = (dalle.transformer, dalle.stream)
    steps = walk_through(dalle.caption_model, *known, dalle.request("a cat", **options), image_ids, 3)
    expected = log_likelihood(*known, dalle.encode("a cat"), image_ids[None], embed)[0].exp()
    torch.testing.assert_close(steps.probability, expected, rtol=1e-3, atol=1e-6)
    without = log_likelihood(*known, dalle.encode("a cat"), image_ids[None])[0].exp()
    assert not torch.allclose(steps.probability, without, rtol=1e-1)


def test_all_probabilities_sum_to_one_and_top_k_leaves_k(tiny_dalle):
    vocab = tiny_dalle.stream.config.image_vocab
    _, steps = steps_of(tiny_dalle, keep=vocab, guidance=2.0, temperature=0.5, top_k=3)
    counts = (steps.probabilities > 0).sum(1)  # less than k where a probability is too small for a number
    assert int(counts.max()) == 3
    torch.testing.assert_close(steps.probabilities.sum(1), torch.ones(len(steps.cells)))
    assert (steps.probability > 0).all()


def test_at_temperature_0_what_is_sampled_is_certain(tiny_dalle):
    _, steps = steps_of(tiny_dalle, temperature=0.0)
    assert steps.probability.tolist() == pytest.approx([1.0] * len(steps.cells))
    assert steps.likeliest[:, 0].tolist() == steps.image_ids.tolist()
