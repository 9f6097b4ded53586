"""CLIP networks and the scorer around them."""

import math
import warnings

import pytest
import torch
from helpers.models import CAPTIONS
from helpers.scorers import (
    EOS,
    LENGTH,
    PAD,
    SIZE,
    AngleModel,
    CertainSigmoidModel,
    LetterTokenizer,
    make_clip,
    make_scorer,
)
from PIL import Image
from torch import nn

from dalle_mini_impl.checkpoint.parts import save_part
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE
from dalle_mini_impl.config.model import ScorerConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.model.build import build_clip
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.sentencepiece_tokenizer import train_text_tokenizer
from dalle_mini_impl.train.losses.contrastive import contrastive_loss
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels


def make_pictures(count, size=(SIZE, SIZE)):
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (count, size[1], size[0], 3), dtype=torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def make_ids(*rows, width=LENGTH):
    return torch.tensor([[*row, EOS, *[PAD] * (width - 1 - len(row))] for row in rows])


# --- model


def test_padding_does_not_change_text_embeddings():
    clip = make_clip()
    short, long = [7, 36, 8], [9, 10, 11, 12, 35, 13, 14]
    together = clip.encode_text(make_ids(short, long))
    torch.testing.assert_close(together[:1], clip.encode_text(make_ids(short, width=4)))
    torch.testing.assert_close(together[1:], clip.encode_text(make_ids(long, width=11)))
    torch.testing.assert_close(together, clip.encode_text(make_ids(short, long, width=29)))


def test_text_after_end_of_text_is_ignored():
    clip = make_clip()
    text_ids = torch.tensor([[7, 36, 8, EOS, 9, 10], [11, 12, 13, 14, 15, EOS]])
    embed = clip.encode_text(text_ids)
    assert embed.shape == (2, 17)
    for position in range(6):
        changed = text_ids.clone()
        changed[0, position] = 20 if position != 3 else 36
        if position == 3:
            changed[0, 4] = EOS
        same = torch.allclose(clip.encode_text(changed)[0], embed[0], atol=1e-5)
        assert same == (position > 3), position
        torch.testing.assert_close(clip.encode_text(changed)[1], embed[1])


def test_text_is_pooled_at_end_of_text():
    # Without blocks no information moves between positions: the embedding depends on the pooled position only.
    clip = make_clip(text_layers=0)
    embed = clip.encode_text(make_ids([7, 36], [35, 8], [7, 36, 9]))
    tower = clip.text_tower
    expected = tower.project(tower.norm(tower.tokens.weight[EOS] + tower.positions[[2, 2, 3]]))
    torch.testing.assert_close(embed, expected)


def test_text_embeddings_depend_on_word_order():
    embed = make_clip().encode_text(make_ids([7, 8, 9], [9, 8, 7]))
    assert not torch.allclose(embed[0], embed[1], atol=1e-4)


def test_image_embeddings_depend_on_every_patch_and_its_position():
    clip = make_clip()
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    embeddings = [clip.encode_image(pixels)]
    for row in range(0, SIZE, 7):
        for column in range(0, SIZE, 7):
            changed = pixels.clone()
            changed[:, :, row : row + 7, column : column + 7] = 1
            embeddings.append(clip.encode_image(changed))
    distances = torch.pdist(torch.cat(embeddings))
    assert len(embeddings) == 10
    assert distances.min() > 1e-4


def test_all_parameters_get_gradients_under_bf16():
    clip = make_clip()
    with torch.autocast("cpu", torch.bfloat16):
        image_embed, text_embed, scale, _ = clip(torch.randn(3, 3, SIZE, SIZE), make_ids([7, 8], [9], [10, 11, 12]))
    contrastive_loss(image_embed, text_embed, scale).backward()
    assert image_embed.dtype == torch.bfloat16
    for name, parameter in clip.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_logit_scale_starts_at_the_papers_value_and_is_clamped():
    clip = make_clip()
    assert clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    for value, clamped in ((9.0, math.log(100)), (-2.0, 0.0), (1.5, 1.5)):
        nn.init.constant_(clip.logit_scale, value)
        clip.clamp_logit_scale()
        assert clip.logit_scale.item() == pytest.approx(clamped)


def test_clip_overfits_one_batch():
    clip = make_clip()
    pixels = torch.rand(7, 3, SIZE, SIZE) * 2 - 1
    text_ids = make_ids(*([int(i) for i in torch.randint(6, 37, (5,))] for _ in range(7)))
    optimizer = torch.optim.AdamW(clip.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = contrastive_loss(*clip(pixels, text_ids))
        loss.backward()
        optimizer.step()
        clip.clamp_logit_scale()
    cosines = clip.encode_image(pixels) @ nn.functional.normalize(clip.encode_text(text_ids)).T
    assert cosines.argmax(dim=1).tolist() == list(range(7))


def test_clip_has_the_sizes_of_its_config():
    config = ScorerConfig(image_size=33, patch_size=11, n_embd=26, n_head=2, image_layers=3, text_layers=1)
    with torch.device("meta"):
        clip = build_clip(config, 41, pad_id=PAD, eos_id=EOS)
    assert clip.image_tower.positions.shape == (9, 26)
    assert clip.text_tower.tokens.weight.shape == (41, 26)
    assert clip.text_tower.positions.shape == (24, 26)
    assert (len(clip.image_tower.blocks), len(clip.text_tower.blocks)) == (3, 1)
    assert (clip.image_size, clip.text_length, clip.embed_dim) == (33, 24, 256)
    assert (clip.text_tower.pad_id, clip.text_tower.eos_id) == (PAD, EOS)


@pytest.mark.parametrize("change", [{"patch_size": 5}, {"n_head": 3}])
def test_impossible_shapes_are_refused(change):
    with pytest.raises(UserError, match=f"{next(iter(change))} {next(iter(change.values()))}"):
        make_clip(**change)


def test_ids_without_end_and_pictures_of_other_sizes_are_refused():
    clip = make_clip()
    with pytest.raises(UserError, match="expected end-of-text id 3 in every caption"):
        clip.encode_text(torch.tensor([[7, EOS, PAD], [7, 8, 9]]))
    with pytest.raises(UserError, match="expected captions of up to 13 ids, got 14"):
        clip.encode_text(make_ids([7] * 13, width=17))
    with pytest.raises(UserError, match=r"\(1, 3, 21, 14\)"):
        clip.encode_image(torch.zeros(1, 3, 21, 14))


# --- scorer


def test_embeddings_are_normalised_fp32_tensors_that_may_be_modified():
    scorer = make_scorer()
    for embed in (scorer.embed_images(make_pictures(5)), scorer.embed_texts(["a", "bc", "def"])):
        assert embed.dtype == torch.float32
        assert embed.shape[1] == 17
        torch.testing.assert_close(embed.norm(dim=1), torch.ones(len(embed)))
        assert not embed.requires_grad
        embed.requires_grad_(True).square().sum().backward()


def test_results_do_not_depend_on_the_chunk_size():
    pictures, texts = make_pictures(7), ["a", "bcdefghijklmnopqrstuvw", "xy", "zab", "c"]
    whole, parts = make_scorer(), make_scorer(chunk_size=3)
    torch.testing.assert_close(parts.embed_images(pictures), whole.embed_images(pictures))
    torch.testing.assert_close(parts.embed_images(to_pixels(pictures, 29)), whole.embed_images(to_pixels(pictures, 29)))
    torch.testing.assert_close(parts.embed_texts(texts), whole.embed_texts(texts))


def test_pictures_and_their_pixels_have_equal_embeddings():
    scorer, pictures = make_scorer(), make_pictures(3, (31, 23))
    torch.testing.assert_close(scorer.embed_images(to_pixels(pictures, SIZE)), scorer.embed_images(pictures))


def test_embed_pixels_is_differentiable():
    scorer, pixels = make_scorer(), to_pixels(make_pictures(3), 29).requires_grad_()
    embed = scorer.embed_pixels(pixels)
    torch.testing.assert_close(embed.detach(), scorer.embed_images(pixels.detach()))
    (gradient,) = torch.autograd.grad(embed[1, 5], pixels)
    assert gradient[1].abs().sum() > 0
    assert not gradient[[0, 2]].any()
    with pytest.raises(UserError, match="uint8"):
        scorer.embed_pixels(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8))


def test_inputs_are_not_modified():
    scorer, pixels, texts = make_scorer(), torch.randn(5, 3, 29, 29), ["a", "b"]
    before = pixels.clone()
    scorer.classify(pixels, texts)
    assert torch.equal(pixels, before)
    assert texts == ["a", "b"]


def test_ranking_is_best_first_and_ties_keep_their_order():
    reds = [0.9, 0.2, 0.5, 0.2, -0.2, 0.7, 0.2]
    pixels = torch.tensor(reds)[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    scorer = make_scorer(AngleModel(), chunk_size=3)
    order, scores = scorer.rank(pixels, "a")
    assert order.tolist() == [1, 3, 4, 6, 2, 5, 0]
    torch.testing.assert_close(scores, torch.tensor([reds[i] for i in order]).cos())
    torch.testing.assert_close(scorer.score(pixels, "a"), torch.tensor(reds).cos())
    order, _ = scorer.rank(pixels, "b")
    assert order.tolist() == [0, 5, 2, 1, 3, 6, 4]


def test_label_probabilities_of_known_directions():
    reds = torch.tensor([0.9, 0.0, -0.4])
    pixels = reds[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    probabilities = make_scorer(AngleModel()).classify(pixels, ["a", "b"])
    # cos and sin are the cosines with the two labels, 5 is the scale.
    expected = (5 * (reds.cos() - reds.sin())).sigmoid()
    torch.testing.assert_close(probabilities[:, 0], expected)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))


def test_label_probabilities_of_a_softmax_model_sum_to_one():
    probabilities = make_scorer().classify(make_pictures(5), ["a", "bc", "def"])
    assert probabilities.shape == (5, 3)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))


def sigmoid_scorer(model):
    return Scorer(model, LetterTokenizer(), Preprocess(SIZE, activation="sigmoid"), LENGTH)


def test_sigmoid_models_give_each_label_an_independent_probability():
    reds = torch.tensor([0.9, 0.0, -0.4])
    pixels = reds[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    scorer = sigmoid_scorer(CertainSigmoidModel())
    nn.init.constant_(scorer.model.logit_bias, -2)
    expected = (5 * torch.stack((reds.cos(), reds.sin()), dim=1) - 2).sigmoid()
    torch.testing.assert_close(scorer.classify(pixels, ["a", "b"]), expected)
    torch.testing.assert_close(scorer.classify(pixels, ["b"]), expected[:, 1:])
    torch.testing.assert_close(scorer.score(pixels, "b"), expected[:, 1])


def test_probabilities_that_round_to_one_are_still_ranked():
    pixels = torch.tensor([0.9, 0.2, 0.5])[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    order, scores = sigmoid_scorer(CertainSigmoidModel()).rank(pixels, "a")
    assert scores.tolist() == [1, 1, 1]
    assert order.tolist() == [1, 2, 0]


def test_trained_sigmoid_models_are_loaded_with_their_bias(tmp_path):
    text = train_text_tokenizer(CAPTIONS, tmp_path / TEXT_TOKENIZER_FILE, 367)
    config = ScorerConfig(image_size=14, patch_size=7, n_embd=22, n_head=2, image_layers=1, text_layers=1, sigmoid=True)
    clip = build_clip(config, text.vocab_size, pad_id=text.pad_id, eos_id=text.eos_id)
    save_part(tmp_path, "scorer", clip, to_dict(config), {"text_tokenizer": text.identity})
    scorer, pictures = Scorer.from_pretrained(str(tmp_path)), make_pictures(3)
    bias = clip.logit_bias.bfloat16().item()
    expected = (scorer.scale * scorer.cosines(pictures, "a cat") + bias).sigmoid()
    torch.testing.assert_close(scorer.score(pictures, "a cat"), expected)


def test_preprocess_of_another_model_is_refused():
    for model, preprocess, message in (
        (
            make_clip(),
            Preprocess(28),
            "expected a preprocess that makes 21 × 21 pixels, the model's input, got one that makes 28",
        ),
        (
            make_clip(),
            Preprocess(SIZE, activation="sigmoid"),
            "activation softmax, as the model has no bias, got sigmoid",
        ),
        (CertainSigmoidModel(), Preprocess(SIZE), "activation sigmoid, as the model has a bias, got softmax"),
    ):
        with pytest.raises(UserError, match=message):
            Scorer(model, LetterTokenizer(), preprocess, LENGTH)


def test_templates_are_averaged_after_normalising():
    scorer = make_scorer()
    labels, templates = ["cat", "{dog}"], ["a {}", "{}: {}", "photo"]
    first, second = (scorer.embed_texts(texts) for texts in (["a cat", "a {dog}"], ["cat: cat", "{dog}: {dog}"]))
    expected = nn.functional.normalize((first + second) / 2, dim=1)
    torch.testing.assert_close(scorer.embed_labels(labels, templates[:2]), expected)
    probabilities = scorer.classify(make_pictures(3), labels, templates[:2])
    cosines = scorer.embed_images(make_pictures(3)) @ expected.T
    torch.testing.assert_close(probabilities, (scorer.scale * cosines).softmax(dim=1))
    for wrong in (templates, [], "a {}"):
        with pytest.raises(UserError, match=r"photo|at least one|single text"):
            scorer.embed_labels(labels, wrong)
    with pytest.raises(UserError, match="single text 'abc'"):
        scorer.classify(make_pictures(1), "abc")


@pytest.mark.parametrize("text", ["", "🦄 👩‍🚀", "قلب أحمر", "cat " * 2500, "\x00", "\udce5"])
def test_every_text_has_an_embedding(tiny_model, text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embed = Scorer.from_pretrained(tiny_model).embed_texts([text])
    assert embed.isfinite().all()
    assert len(caught) <= 1
    assert all(len(str(warning.message)) < 600 for warning in caught)
    assert caught or len(text) < 1000


def test_empty_inputs_have_empty_results():
    scorer = make_scorer()
    assert scorer.embed_images([]).shape == (0, 17)
    assert scorer.embed_texts([]).shape == (0, 17)
    order, scores = scorer.rank(torch.zeros(0, 3, SIZE, SIZE), "a")
    assert order.shape == scores.shape == (0,)


def test_inputs_of_wrong_types_are_refused():
    scorer = make_scorer()
    with pytest.raises(UserError, match="single text 'abc'"):
        scorer.embed_texts("abc")
    with pytest.raises(UserError, match="expected at least one label"):
        scorer.classify(make_pictures(2), [])
    with pytest.raises(UserError, match=r"got a tensor of shape \(3, 21, 21\)"):
        scorer.embed_images(torch.zeros(3, SIZE, SIZE))
    with pytest.raises(UserError, match=r"got torch.int64"):
        scorer.embed_images(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.int64))
    with pytest.raises(UserError, match=r"got torch.uint8"):
        scorer.embed_pixels(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8))
    with pytest.raises(UserError, match="list of PIL pictures"):
        scorer.embed_images(make_pictures(1)[0])
    with pytest.raises(UserError, match="list of PIL pictures"):
        scorer.embed_images(["picture.png"])


def test_uint8_pixels_are_values_from_0_to_255():
    pixels = torch.randint(256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    scorer = make_scorer()
    assert torch.equal(scorer.embed_images(pixels), scorer.embed_images(pixels.float() / 127.5 - 1))


@pytest.mark.parametrize("value", [math.nan, math.inf, 255.0])
def test_pixels_that_are_no_pixels_are_refused(value):
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    pixels[1, 0, 0, 0] = value
    with pytest.raises(UserError, match=r"expected pixels in \[-1, 1\], got values from"):
        make_scorer().rank(pixels, "a")


@pytest.mark.parametrize("weight", ["image_tower.project.weight", "text_tower.project.weight", "logit_scale"])
def test_a_scorer_with_a_weight_that_is_not_a_number_ranks_nothing(weight):
    clip = make_clip()
    with torch.no_grad():
        dict(clip.named_parameters())[weight].view(-1)[0] = math.nan
    with pytest.raises(UserError, match=r"expected .*finite .*damaged"):
        make_scorer(clip).classify(make_pictures(2), ["a", "b"])


def test_probabilities_of_embeddings_that_are_not_numbers_are_refused():
    with pytest.raises(UserError, match="expected finite cosines of embeddings, got 2 of 4"):
        make_scorer().probabilities(torch.tensor([[math.nan, 0], [1, 0]]), torch.eye(2))
