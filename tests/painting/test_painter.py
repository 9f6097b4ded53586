import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from helpers.models import IMAGE_TOKENIZER, make_image_tokenizer, randomise
from helpers.pictures import block_picture, random_pixels
from PIL import Image

from dalle_mini_impl.config.model import ImageTokenizerConfig, ImportedNetworkConfig
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.painting.cuts import Cuts
from dalle_mini_impl.painting.painter import Painter, PaintSettings, paint
from dalle_mini_impl.painting.targets import Target
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images
from dalle_mini_impl.util.save_picture import read_metadata

FEW_CUTS = Cuts(count=5, chunk=2)
SHORT = PaintSettings(steps=3, seed=7, cuts=FEW_CUTS)
SHORT_SHIPPED = PaintSettings(steps=14, cuts=Cuts(count=4))
VQVAE_SHAPE = {"channels": (13, 17), "decoder_blocks": 1, "image_size": 24, "factor": 8}
QUANTIZERS = {
    "vq": IMAGE_TOKENIZER,
    "fsq": ImageTokenizerConfig(quantizer="fsq", codebook_size=105, embed_dim=3, fsq_levels=(7, 5, 3), **VQVAE_SHAPE),
    "lfq": ImageTokenizerConfig(quantizer="lfq", codebook_size=64, embed_dim=6, **VQVAE_SHAPE),
    "simvq": ImageTokenizerConfig(quantizer="simvq", codebook_size=61, embed_dim=5, **VQVAE_SHAPE),
    "gumbel": ImageTokenizerConfig(
        quantizer="gumbel", codebook_size=61, embed_dim=5, likelihood="laplace", **VQVAE_SHAPE
    ),
}
IMPORTED_SHAPE = {"image_size": 24, "codebook_size": 61, "embed_dim": 5, "encoder_blocks": 1, "decoder_blocks": 1}
VQGAN = {
    "network": "taming",
    "factor": 2,
    "channels": (32, 32),
    "imported": ImportedNetworkConfig(stem=32, z_channels=7),
    **IMPORTED_SHAPE,
}
IMPORTED = {
    "VQGAN": ImageTokenizerConfig(quantizer="nearest", **VQGAN),
    "LlamaGen": ImageTokenizerConfig(quantizer="cosine", **VQGAN),
    "Gumbel VQGAN": ImageTokenizerConfig(quantizer="logits", **VQGAN),
    "OpenAI": ImageTokenizerConfig(
        network="openai-dvae",
        quantizer="logits",
        factor=2,
        channels=(8, 12),
        likelihood="laplace",
        **IMPORTED_SHAPE,
    ),
    "DALLE-pytorch": ImageTokenizerConfig(
        network="dalle-pytorch", quantizer="logits", factor=4, channels=(7, 7), **IMPORTED_SHAPE
    ),
}


def test_equal_seeds_give_equal_files_that_record_prompts_and_settings(tokenizer, scorer, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        torch.manual_seed(ord(name))  # must make no difference
        settings = dataclasses.replace(SHORT, seed=seed)
        paint(tokenizer, {"tiny": scorer}, "a red heart | snow:-0.3", settings).save(tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    metadata = read_metadata(tmp_path / "a.png")
    assert metadata["prompts"] == [{"text": "a red heart", "weight": 1.0}, {"text": "snow", "weight": -0.3}]
    assert metadata["steps"] == 3
    assert metadata["paint"]["seed"] == 7
    assert metadata["paint"]["cuts"]["count"] == 5


@pytest.mark.parametrize("config", [*QUANTIZERS.values(), *IMPORTED.values()], ids=[*QUANTIZERS, *IMPORTED])
def test_every_image_tokenizer_can_be_painted_with(config, scorer):
    if config.network == "vqvae":
        tokenizer = make_image_tokenizer(config)
    else:
        tokenizer = randomise(ImageTokenizer(config, commitment=None), 5)
    settings = dataclasses.replace(SHORT, learning_rate=1.0)
    painter = Painter(tokenizer, {"tiny": scorer}, "a red heart", settings)
    first = painter.result()
    table = tokenizer.table()
    assert table.shape == (config.codebook_size, config.embed_dim)
    painter._compute_gradient()
    assert painter._z.grad.isfinite().all()
    assert painter._z.grad.abs().sum() > 0
    for _ in painter:
        assert (painter._z >= table.amin(0)[:, None, None]).all()
        assert (painter._z <= table.amax(0)[:, None, None]).all()
    assert not torch.equal(painter.result().image_ids, first.image_ids)
    decoded = tokenizer.decode(painter.result().image_ids[None])
    assert to_images(decoded)[0].tobytes() == painter.image.tobytes()


def test_painting_does_not_change_the_models(tokenizer, scorer):
    modules = [tokenizer, scorer.model]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    flags = [[(p.requires_grad, m.training) for m in module.modules() for p in m.parameters()] for module in modules]
    paint(tokenizer, {"tiny": scorer}, "a red heart", SHORT)
    for module, old, flag in zip(modules, before, flags, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())
        assert [(p.requires_grad, m.training) for m in module.modules() for p in m.parameters()] == flag
        assert all(p.grad is None for p in module.parameters())


def test_the_gradient_does_not_depend_on_the_chunk_size(tokenizer, scorer, second_scorer):
    gradients = []
    losses = []
    for chunk in (2, 5, 100):
        settings = dataclasses.replace(SHORT, cuts=Cuts(count=7, chunk=chunk))
        painter = Painter(tokenizer, {"a": scorer, "b": second_scorer}, "a red heart | snow:-0.5", settings)
        losses.append(painter._compute_gradient()[0])
        gradients.append(painter._z.grad)
    scale = gradients[0].abs().max()
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient / scale, gradients[0] / scale, rtol=0, atol=1e-4)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_gradient_and_loss_of_several_scorers_are_means(tokenizer, scorer, second_scorer):
    pixels = random_pixels(24, 24).requires_grad_()
    both = {"a": scorer, "b": second_scorer}
    gradient_a, gradient_b, gradient_both = (
        Painter(tokenizer, scorers, "a red heart", SHORT)._score(pixels)[0]
        for scorers in ({"a": scorer}, {"b": second_scorer}, both)
    )
    torch.testing.assert_close(gradient_both, (gradient_a + gradient_b) / 2, rtol=1e-3, atol=1e-7)
    loss, losses, _ = Painter(tokenizer, both, "a red heart", SHORT)._compute_gradient()
    assert loss == pytest.approx((losses["a"] + losses["b"]) / 2)
    assert losses["a"] != losses["b"]


def test_weights_scale_the_gradient(tokenizer, scorer):
    gradients = [
        Painter(tokenizer, {"tiny": scorer}, prompt, SHORT)._score(random_pixels(24, 24).requires_grad_())[0]
        for prompt in ("a red heart:2", "a red heart | a red heart", "a red heart:-2")
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(gradients[0], -gradients[2], rtol=1e-3, atol=1e-7)


def test_zero_steps_give_the_reconstruction_of_the_start(tokenizer, scorer):
    start = block_picture(width=40)
    settings = PaintSettings(steps=0, size=(24, 40))
    ids = tokenizer.encode(torch.from_numpy(np.asarray(start).copy()).permute(2, 0, 1)[None] / 127.5 - 1)
    result = paint(tokenizer, {"tiny": scorer}, "a red heart", settings, start)
    assert torch.equal(result.image_ids, ids[0])
    assert result.image.tobytes() == to_images(tokenizer.decode(ids))[0].tobytes()
    again = paint(tokenizer, {"tiny": scorer}, "a red heart", PaintSettings(steps=0), ids[0])
    assert again.image.tobytes() == result.image.tobytes()


def test_init_weight_keeps_the_latent_near_the_start(tokenizer, scorer):
    distances = {}
    for weight in (0.0, 1e4):
        settings = PaintSettings(steps=9, learning_rate=0.5, init_weight=weight, cuts=FEW_CUTS)
        painter = Painter(tokenizer, {"tiny": scorer}, "a red heart", settings, block_picture())
        losses = [step.loss for step in painter]
        distances[weight] = float((painter._z - painter._start).detach().square().mean())
    assert distances[1e4] < 0.3 * distances[0.0]
    assert losses[1] > losses[0]  # the first step is taken at the start, where the term is 0


def test_pictures_have_the_size_of_the_settings(tokenizer, scorer):
    for size, expected in ((0, (24, 24)), (32, (32, 32)), ((16, 40), (40, 16))):
        settings = PaintSettings(steps=1, size=size, cuts=FEW_CUTS)
        assert paint(tokenizer, {"tiny": scorer}, "a red heart", settings).image.size == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scorers": {}}, "expected at least one scorer, .* got 0 scorers and 1 prompts"),
        ({"targets": []}, "got 1 scorers and 0 prompts"),
        ({"targets": "a cat:0"}, "one prompt with a weight other than 0"),
        ({"targets": "none.png"}, "none.png is not a readable picture"),
        (
            {"settings": PaintSettings(init_weight=1)},
            "expected a picture to start from with an init weight, got init weight 1 alone",
        ),
        ({"settings": PaintSettings(size=20)}, "expected a size in multiples of 8 pixels, got size 20×20"),
        ({"settings": PaintSettings(size=(24, -8))}, "got size 24×-8"),
        (
            {"start": torch.zeros(3, 4)},
            r"expected integer image ids of shape \(h, w\) to start from, .* type torch.float32",
        ),
        ({"start": torch.zeros(1, 3, 4, dtype=torch.int64)}, r"shape \(1, 3, 4\) and"),
        (
            {"start": torch.zeros(3, 4, dtype=torch.int64), "settings": PaintSettings(size=32)},
            r"of shape \(4, 4\) to start from, got shape \(3, 4\)",
        ),
        ({"start": torch.full((3, 4), 61)}, "expected image ids from 0 to 60, got ids from 61 to 61"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tokenizer, scorer, change, message):
    arguments = {"scorers": {"tiny": scorer}, "targets": "a cat", **change}
    with pytest.raises(UserError, match=message):
        Painter(tokenizer, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "expected 0 or more steps, got -1 steps"),
        ({"seed": -1}, "got seed -1"),
        ({"learning_rate": 0}, "expected a learning rate above 0, got learning rate 0"),
        ({"init_weight": math.nan}, "got init weight nan"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        PaintSettings(**changes)


def test_painting_reaches_a_higher_cosine_than_random_latents(shipped):
    tokenizer, scorer = shipped
    ids = torch.randint(1024, (64, 8, 8), generator=torch.Generator().manual_seed(0))
    random = scorer.cosines(tokenizer.decode(ids), "a red heart")
    painter = Painter(tokenizer, {"emoji": scorer}, "a red heart", SHORT_SHIPPED)
    losses = [step.loss for step in painter]
    assert max(losses[-3:]) < min(losses[:3])
    assert float(scorer.cosines([painter.image], "a red heart")[0]) > float(random.max())


def test_a_negative_weight_lowers_the_cosine(shipped):
    tokenizer, scorer = shipped
    changes = {}
    for weight in (1, -1):
        painter = Painter(tokenizer, {"emoji": scorer}, [Target("a red heart", weight)], SHORT_SHIPPED)
        before = float(scorer.cosines([painter.image], "a red heart")[0])
        for _ in painter:
            pass
        changes[weight] = float(scorer.cosines([painter.image], "a red heart")[0]) - before
    assert changes[-1] < -0.1
    assert changes[1] > 0.1


def test_a_picture_as_target_raises_the_cosine(shipped):
    tokenizer, scorer = shipped
    target = Image.new("RGB", (64, 64), (40, 160, 60))
    painter = Painter(tokenizer, {"emoji": scorer}, [Target(target)], SHORT_SHIPPED)
    cosines = []
    for _ in range(2):
        cosines.append(float(scorer.embed_images([painter.image])[0] @ scorer.embed_images([target])[0]))
        for _ in painter:
            pass
    assert cosines[1] > cosines[0] + 0.1


def test_settings_of_a_painting_are_json(tokenizer, scorer):
    targets = [Target("a"), Target(block_picture()), Target(3, 0.5)]
    settings = paint(tokenizer, {"tiny": scorer}, targets, PaintSettings(steps=0)).settings
    assert json.loads(json.dumps(settings, allow_nan=False))["prompts"][2] == {"noise": 3, "weight": 0.5}


def test_sizes_and_cuts_that_cannot_fit_into_the_memory_are_refused_first(tokenizer, scorer):
    many = [Cuts(count=10**12, chunk=10**12), Cuts(count=10**12, chunk=1), Cuts(count=10**30)]
    for settings in (PaintSettings(size=8_000_000), *(PaintSettings(cuts=cuts) for cuts in many)):
        with pytest.raises(UserError, match=r"expected a painting of .* pixels to fit into .* choose a smaller size"):
            Painter(tokenizer, {"a": scorer}, "a cat", settings)


def test_a_loss_that_is_not_a_number_ends_the_painting_and_leaves_the_picture(tokenizer, scorer):
    painter = Painter(tokenizer, {"a": scorer}, [Target("a cat", 1e38), Target("a dog", 1e38)], SHORT)
    before = painter.result().image_ids
    with pytest.raises(UserError, match=r"expected a finite loss and gradient, got loss .* at step 1; use smaller"):
        next(iter(painter))
    assert torch.equal(painter.result().image_ids, before)
