import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from helpers.models import IMAGE_TOKENIZER, SCORER, make_image_tokenizer, randomise
from PIL import Image
from torch.nn import functional as F

from dalle_mini_impl.config.model import ImageTokenizerConfig, ImportedNetworkConfig
from dalle_mini_impl.model.build import build_clip
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.painting.cuts import Cuts, cut_out, draw_cuts
from dalle_mini_impl.painting.frames import LINGER, frame_steps, save_frames
from dalle_mini_impl.painting.gradients import clamp, half_square_angle, nearest, stop_at, straight_through
from dalle_mini_impl.painting.painter import Painter, PaintSettings, distances, paint
from dalle_mini_impl.painting.targets import Directions, Target, parse_noise, parse_targets
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import read_metadata, to_images

FEW = Cuts(count=5, chunk=2)
SMALL = PaintSettings(steps=3, seed=7, cuts=FEW)
IN_STEP = {"channels": (13, 17), "decoder_blocks": 1, "image_size": 24, "factor": 8}
OURS = {
    "vq": IMAGE_TOKENIZER,
    "fsq": ImageTokenizerConfig(quantizer="fsq", codebook_size=105, embed_dim=3, fsq_levels=(7, 5, 3), **IN_STEP),
    "lfq": ImageTokenizerConfig(quantizer="lfq", codebook_size=64, embed_dim=6, **IN_STEP),
    "simvq": ImageTokenizerConfig(quantizer="simvq", codebook_size=61, embed_dim=5, **IN_STEP),
    "gumbel": ImageTokenizerConfig(quantizer="gumbel", codebook_size=61, embed_dim=5, likelihood="laplace", **IN_STEP),
}
SHAPE = {"image_size": 24, "codebook_size": 61, "embed_dim": 5, "encoder_blocks": 1, "decoder_blocks": 1}
VQGAN = {
    "network": "taming",
    "factor": 2,
    "channels": (32, 32),
    "imported": ImportedNetworkConfig(stem=32, z_channels=7),
    **SHAPE,
}
IMPORTED = {
    "VQGAN": ImageTokenizerConfig(quantizer="nearest", **VQGAN),
    "LlamaGen": ImageTokenizerConfig(quantizer="cosine", **VQGAN),
    "Gumbel VQGAN": ImageTokenizerConfig(quantizer="logits", **VQGAN),
    "OpenAI": ImageTokenizerConfig(network="openai-dvae", quantizer="logits", factor=2, channels=(8, 12), **SHAPE,
                                   likelihood="laplace"),
    "DALLE-pytorch": ImageTokenizerConfig(network="dalle-pytorch", quantizer="logits", factor=4, channels=(7, 7),
                                          **SHAPE),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return make_image_tokenizer()


@pytest.fixture(scope="module")
def scorer(tiny_model):
    return Scorer.from_pretrained(str(tiny_model))


@pytest.fixture(scope="module")
def second(text_tokenizer):
    """Another scorer: other weights, and another size of pictures."""
    config = dataclasses.replace(SCORER, image_size=21)
    clip = build_clip(config, text_tokenizer.vocab_size, pad_id=text_tokenizer.pad_id, eos_id=text_tokenizer.eos_id)
    return Scorer(randomise(clip, 11), text_tokenizer, Preprocess(21), SCORER.text_length)


def picture(seed=0, width=24, height=24):
    values = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)


def pixels_of(height, width, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


# --- gradients


def test_half_the_squared_angle_is_that_of_the_arc_cosine():
    a, b = unit(97, 13), unit(97, 13, seed=1)
    angle = (a * b).sum(-1).acos()
    torch.testing.assert_close(half_square_angle(a, b), angle**2 / 2)
    torch.testing.assert_close(half_square_angle(a, b), 2 * ((a - b).norm(dim=-1) / 2).arcsin() ** 2)
    assert half_square_angle(a, a).max() == 0


def test_the_angles_gradient_is_finite_where_vectors_meet_or_are_opposite():
    for sign in (1, -1):
        a = unit(3, 13).requires_grad_()
        half_square_angle(a, sign * a.detach()).sum().backward()
        assert a.grad.isfinite().all()


def test_straight_through_gives_the_nearest_vectors_and_leaves_gradients_alone():
    table = torch.randn(61, 5, generator=torch.Generator().manual_seed(0))
    z = torch.randn(1, 5, 3, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ids = nearest(z, table)
    slow = [[int(((table - z[0, :, y, x]) ** 2).sum(1).argmin()) for x in range(7)] for y in range(3)]
    assert ids[0].tolist() == slow
    quantized = straight_through(z, table)
    torch.testing.assert_close(quantized[0, :, 2, 5], table[ids[0, 2, 5]])
    slope = torch.randn(1, 5, 3, 7)
    (quantized * slope).sum().backward()
    assert torch.equal(z.grad, slope)


def test_clamp_blocks_only_what_pushes_further_outside():
    x = torch.tensor([-3.0, -3.0, 0.5, 0.5, 3.0, 3.0], requires_grad=True)
    slope = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # descent moves the other way
    clamped = clamp(x, -1, 1)
    assert clamped.tolist() == [-1, -1, 0.5, 0.5, 1, 1]
    (clamped * slope).sum().backward()
    assert x.grad.tolist() == [0, -1, 1, -1, 1, 0]


def test_what_is_near_enough_is_pulled_no_nearer():
    distance = torch.tensor([0.1, 0.5], requires_grad=True)
    stopped = stop_at(distance, torch.tensor(0.3))
    assert stopped.tolist() == pytest.approx([0.1, 0.5])
    stopped.sum().backward()
    assert distance.grad.tolist() == [0, 1]


# --- targets


def test_prompts_are_parsed_into_targets():
    targets = parse_targets(r" a fox:1.5 | photo.jpg:0.5|text:-0.3:-1 | a \| b")
    assert [target.facts() for target in targets] == [
        {"text": "a fox", "weight": 1.5},
        {"picture": "photo.jpg", "weight": 0.5},
        {"text": "text", "weight": -0.3, "stop": -1.0},
        {"text": "a | b", "weight": 1.0},
    ]
    assert parse_noise("7:0.25").facts() == {"noise": 7, "weight": 0.25}
    assert parse_noise("7").facts() == {"noise": 7, "weight": 1.0}
    assert Target(picture()).facts() == {"picture": "given", "weight": 1.0}


def test_targets_lie_where_the_scorer_has_them(scorer, tmp_path):
    picture(3).save(tmp_path / "a.png")
    text, image, path = (Target(content).embed(scorer) for content in ("a cat", picture(3), tmp_path / "a.png"))
    assert torch.equal(text, scorer.embed_texts(["a cat"])[0])
    assert torch.equal(image, scorer.embed_images([picture(3)])[0])
    assert torch.equal(image, path)
    noise = Target(5).embed(scorer)
    assert noise.shape == text.shape
    assert float(noise.norm()) == pytest.approx(1)
    assert torch.equal(noise, Target(5).embed(scorer))
    assert not torch.equal(noise, Target(6).embed(scorer))


def test_the_loss_is_the_weighted_sum_of_angles(scorer):
    targets = [Target("a cat", 2.0), Target("snow", -0.5), Target("a tree", 1.0, stop=100.0)]
    directions = Directions.of(targets, scorer)
    embed = F.normalize(torch.randn(7, SCORER.embed_dim), dim=1).requires_grad_()
    found = distances(embed, directions)
    angles = (embed @ directions.embed.T).clamp(-1, 1).acos() ** 2 / 2
    torch.testing.assert_close(found, angles * torch.tensor([2.0, -0.5, 1.0]), rtol=1e-4, atol=1e-5)
    found[:, 2].sum().backward()
    assert not embed.grad.any()  # near enough from the start


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_targets("a fox | | snow"), "an empty prompt was given; expected a text"),
        (lambda: parse_targets(""), "an empty prompt was given"),
        (lambda: Target("a", math.inf), "weight inf and stop -inf were given; expected numbers"),
        (lambda: Target("a", 1.0, math.nan), "weight 1.0 and stop nan were given"),
        (lambda: parse_noise("a:1"), "noise prompt 'a:1' was given; expected SEED or SEED:WEIGHT"),
        (lambda: parse_noise("-1"), "noise prompt '-1' was given"),
        (lambda: parse_noise("7.png"), "noise prompt '7.png' was given"),
        (lambda: Cuts(count=0), "0 cuts, 16 at a time, were asked for"),
        (lambda: Cuts(chunk=0), "32 cuts, 0 at a time, were asked for"),
        (lambda: Cuts(shares=(0.9, 0.5)), r"cuts of shares \(0.9, 0.5\) were asked for"),
        (lambda: Cuts(shares=(0, 1)), r"cuts of shares \(0, 1\) were asked for"),
        (lambda: Cuts(jitter=1), "cuts with rotation .*, jitter 1 and noise .* were asked for"),
        (lambda: PaintSettings(steps=-1), "-1 steps and seed 0 were given; expected 0 or more"),
        (lambda: PaintSettings(seed=-1), "seed -1 were given"),
        (lambda: PaintSettings(learning_rate=0), "learning rate 0 and init weight 0.0 were given"),
        (lambda: PaintSettings(init_weight=math.nan), "init weight nan were given"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- cuts


def test_a_whole_cut_is_the_picture():
    pixels, generator = pixels_of(13, 13), torch.Generator().manual_seed(0)
    cuts = Cuts(count=3, shares=(1, 1), rotation=0, jitter=0, noise=0)
    views = cut_out(pixels, draw_cuts(cuts, 13, 13, generator), generator)
    torch.testing.assert_close(views, pixels.expand(3, -1, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(13, 29), (29, 13)])
def test_cuts_are_squares_from_within_the_picture(height, width):
    across = torch.linspace(-1, 1, width).expand(height, -1)
    down = torch.linspace(-1, 1, height)[:, None].expand(-1, width)
    pixels, generator = torch.stack([across, down, across])[None], torch.Generator().manual_seed(1)
    cuts = Cuts(count=41, shares=(0.5, 0.9), rotation=0, jitter=0, noise=0)
    views = cut_out(pixels, draw_cuts(cuts, height, width, generator), generator)
    assert views.shape == (41, 3, 13, 13)
    steps = [views[:, 0, 6, 9] - views[:, 0, 6, 3], views[:, 1, 9, 6] - views[:, 1, 3, 6]]  # over 6 of 13 rows
    across, down = (step * (side - 1) / 2 * 13 / 6 for step, side in zip(steps, (width, height), strict=True))
    torch.testing.assert_close(across, down, rtol=1e-3, atol=1e-3)  # in pixels, as wide as high
    assert 0.5 * 13 - 0.01 < across.min() < 0.6 * 13
    assert 0.8 * 13 < across.max() < 0.9 * 13 + 0.01
    middles = views[:, 0, 6, 6] if width > height else views[:, 1, 6, 6]
    assert middles.min() < -0.4  # from all over
    assert middles.max() > 0.4


def test_cuts_are_mirrored_turned_and_coloured_if_asked_for():
    pixels = pixels_of(13, 13)

    def views(**changes):
        generator = torch.Generator().manual_seed(2)
        cuts = Cuts(**{"count": 11, "shares": (1, 1), "rotation": 0, "jitter": 0, "noise": 0, **changes})
        return cut_out(pixels, draw_cuts(cuts, 13, 13, generator), generator)

    def same(view, other):
        return torch.allclose(view, other[0], atol=1e-4)

    mirrored = views(mirror=True)
    assert {(same(view, pixels), same(view, pixels.flip(3))) for view in mirrored} == {(True, False), (False, True)}
    assert not any(same(view, pixels) for view in views(rotation=30))
    coloured = views(jitter=0.2)
    steps = (coloured[:, 0, 0, 0] - coloured[:, 0, 5, 7]) / (pixels[0, 0, 0, 0] - pixels[0, 0, 5, 7])
    assert 0.8 <= steps.min() < 0.95 < 1.05 < steps.max() <= 1.2
    spread = (views(noise=0.5) - pixels).flatten(1).std(1)
    assert spread.min() < 0.2 < 0.3 < spread.max() < 0.6


# --- painting


def test_equal_seeds_give_equal_bytes(tokenizer, scorer, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        torch.manual_seed(ord(name))  # nothing else has a say
        settings = dataclasses.replace(SMALL, seed=seed)
        paint(tokenizer, {"tiny": scorer}, "a red heart | snow:-0.3", settings).save(tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    facts = read_metadata(tmp_path / "a.png")
    assert facts["prompts"] == [{"text": "a red heart", "weight": 1.0}, {"text": "snow", "weight": -0.3}]
    assert (facts["steps"], facts["paint"]["seed"], facts["paint"]["cuts"]["count"]) == (3, 7, 5)


@pytest.mark.parametrize("config", [*OURS.values(), *IMPORTED.values()], ids=[*OURS, *IMPORTED])
def test_every_image_tokenizer_can_be_painted_with(config, scorer):
    tokenizer = make_image_tokenizer(config) if config.network == "vqvae" else None
    tokenizer = tokenizer or randomise(ImageTokenizer(config, commitment=None), 5)
    settings = dataclasses.replace(SMALL, learning_rate=1.0)
    painter = Painter(tokenizer, {"tiny": scorer}, "a red heart", settings)
    first, table = painter.result(), tokenizer.table()
    assert table.shape == (config.codebook_size, config.embed_dim)
    painter._set_gradient()
    assert painter._z.grad.isfinite().all()
    assert painter._z.grad.abs().sum() > 0
    for _ in painter:
        assert (painter._z >= table.amin(0)[:, None, None]).all()
        assert (painter._z <= table.amax(0)[:, None, None]).all()
    assert not torch.equal(painter.result().image_ids, first.image_ids)
    decoded = tokenizer.decode(painter.result().image_ids[None])
    assert to_images(decoded)[0].tobytes() == painter.image.tobytes()


def test_models_are_left_as_they_were(tokenizer, scorer):
    modules = [tokenizer, scorer.model]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    flags = [[(p.requires_grad, m.training) for m in module.modules() for p in m.parameters()] for module in modules]
    paint(tokenizer, {"tiny": scorer}, "a red heart", SMALL)
    for module, old, flag in zip(modules, before, flags, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())
        assert [(p.requires_grad, m.training) for m in module.modules() for p in m.parameters()] == flag
        assert all(p.grad is None for p in module.parameters())


def test_chunks_give_the_gradient_of_all_cuts_at_once(tokenizer, scorer, second):
    gradients, losses = [], []
    for chunk in (2, 5, 100):
        settings = dataclasses.replace(SMALL, cuts=Cuts(count=7, chunk=chunk))
        painter = Painter(tokenizer, {"a": scorer, "b": second}, "a red heart | snow:-0.5", settings)
        losses.append(painter._set_gradient()[0])
        gradients.append(painter._z.grad)
    scale = gradients[0].abs().max()
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient / scale, gradients[0] / scale, rtol=0, atol=1e-4)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_several_scorers_are_followed_by_their_mean(tokenizer, scorer, second):
    one, two, pixels = {"a": scorer}, {"b": second}, pixels_of(24, 24).requires_grad_()
    (first, _), (other, _), (both, _) = (
        Painter(tokenizer, scorers, "a red heart", SMALL)._judge(pixels) for scorers in (one, two, {**one, **two})
    )
    torch.testing.assert_close(both, (first + other) / 2, rtol=1e-3, atol=1e-7)
    loss, losses = Painter(tokenizer, {**one, **two}, "a red heart", SMALL)._set_gradient()
    assert loss == pytest.approx((losses["a"] + losses["b"]) / 2)
    assert losses["a"] != losses["b"]


def test_weights_multiply(tokenizer, scorer):
    gradients = [
        Painter(tokenizer, {"tiny": scorer}, prompt, SMALL)._judge(pixels_of(24, 24).requires_grad_())[0]
        for prompt in ("a red heart:2", "a red heart | a red heart", "a red heart:-2")
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(gradients[0], -gradients[2], rtol=1e-3, atol=1e-7)


def test_no_steps_give_the_reconstruction_of_the_start(tokenizer, scorer):
    start, settings = picture(width=40), PaintSettings(steps=0, size=(24, 40))
    ids = tokenizer.encode(torch.from_numpy(np.asarray(start).copy()).permute(2, 0, 1)[None] / 127.5 - 1)
    result = paint(tokenizer, {"tiny": scorer}, "a red heart", settings, start)
    assert torch.equal(result.image_ids, ids[0])
    assert result.image.tobytes() == to_images(tokenizer.decode(ids))[0].tobytes()
    again = paint(tokenizer, {"tiny": scorer}, "a red heart", PaintSettings(steps=0), ids[0])
    assert again.image.tobytes() == result.image.tobytes()


def test_init_weight_holds_to_the_start_and_not_to_zero(tokenizer, scorer):
    left = {}
    for weight in (0.0, 1e4):
        settings = PaintSettings(steps=9, learning_rate=0.5, init_weight=weight, cuts=FEW)
        painter = Painter(tokenizer, {"tiny": scorer}, "a red heart", settings, picture())
        losses = [step.loss for step in painter]
        left[weight] = float((painter._z - painter._start).detach().square().mean())
    assert left[1e4] < 0.3 * left[0.0]
    assert losses[1] > losses[0]  # at the start it adds nothing


def test_pictures_have_the_size_asked_for(tokenizer, scorer):
    for size, expected in ((0, (24, 24)), (32, (32, 32)), ((16, 40), (40, 16))):
        settings = PaintSettings(steps=1, size=size, cuts=FEW)
        assert paint(tokenizer, {"tiny": scorer}, "a red heart", settings).image.size == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scorers": {}}, "0 scorers and 1 prompts were given; expected at least one of each"),
        ({"targets": []}, "1 scorers and 0 prompts were given"),
        ({"targets": "a cat:0"}, "and a weight other than 0"),
        ({"targets": "none.png"}, "none.png is not a readable picture"),
        ({"settings": PaintSettings(init_weight=1)}, "init weight 1 was given without a picture to start from"),
        ({"settings": PaintSettings(size=20)}, "size 20×20 was given; both sides must be multiples of 8 pixels"),
        ({"settings": PaintSettings(size=(24, -8))}, "size 24×-8 was given"),
        ({"start": torch.zeros(3, 4)}, r"type torch.float32 were given to start from; expected whole .* \(h, w\)"),
        ({"start": torch.zeros(1, 3, 4, dtype=torch.int64)}, r"shape \(1, 3, 4\) and"),
        (
            {"start": torch.zeros(3, 4, dtype=torch.int64), "settings": PaintSettings(size=32)},
            r"ids of shape \(3, 4\) .* of shape \(4, 4\)",
        ),
        ({"start": torch.full((3, 4), 61)}, "expected image ids from 0 to 60, got ids from 61 to 61"),
    ],
)
def test_what_cannot_be_painted_is_refused(tokenizer, scorer, change, message):
    arguments = {"scorers": {"tiny": scorer}, "targets": "a cat", **change}
    with pytest.raises(UserError, match=message):
        Painter(tokenizer, **arguments)


# --- the shipped model


@pytest.fixture(scope="module")
def shipped():
    return ImageTokenizer.from_pretrained("emoji"), Scorer.from_pretrained("emoji")


QUICK = PaintSettings(steps=14, cuts=Cuts(count=4))


def test_painting_beats_random_latents(shipped):
    tokenizer, scorer = shipped
    ids = torch.randint(1024, (64, 8, 8), generator=torch.Generator().manual_seed(0))
    random = scorer.cosines(tokenizer.decode(ids), "a red heart")
    painter = Painter(tokenizer, {"emoji": scorer}, "a red heart", QUICK)
    losses = [step.loss for step in painter]
    assert max(losses[-3:]) < min(losses[:3])
    assert float(scorer.cosines([painter.image], "a red heart")[0]) > float(random.max())


def test_a_negative_weight_repels(shipped):
    tokenizer, scorer = shipped
    found = {}
    for weight in (1, -1):
        painter = Painter(tokenizer, {"emoji": scorer}, [Target("a red heart", weight)], QUICK)
        before = float(scorer.cosines([painter.image], "a red heart")[0])
        for _ in painter:
            pass
        found[weight] = float(scorer.cosines([painter.image], "a red heart")[0]) - before
    assert found[-1] < -0.1
    assert found[1] > 0.1


def test_a_picture_prompt_attracts(shipped):
    tokenizer, scorer = shipped
    wanted = Image.new("RGB", (64, 64), (40, 160, 60))
    painter = Painter(tokenizer, {"emoji": scorer}, [Target(wanted)], QUICK)
    cosines = []
    for _ in range(2):
        cosines.append(float(scorer.embed_images([painter.image])[0] @ scorer.embed_images([wanted])[0]))
        for _ in painter:
            pass
    assert cosines[1] > cosines[0] + 0.1


# --- frames


def test_frames_are_spread_over_all_steps():
    assert sorted(frame_steps(100, 5)) == [0, 25, 50, 75, 100]
    assert sorted(frame_steps(3, 50)) == [0, 1, 2, 3]
    assert frame_steps(0, 2) == {0}
    with pytest.raises(UserError, match="1 frames were asked for, expected 2 or more"):
        frame_steps(100, 1)


def test_a_gif_has_every_frame(tmp_path):
    frames = [picture(seed) for seed in range(5)]
    with Image.open(save_frames(frames, tmp_path / "way.gif")) as gif:
        assert gif.n_frames == 5
        assert gif.size == (24, 24)
        durations = []
        for number in range(5):
            gif.seek(number)
            durations.append(gif.info["duration"])
    assert durations[-1] > 5 * durations[0] > 0
    with pytest.raises(UserError, match=r"way\.avi; expected a file that ends in \.gif or \.mp4"):
        save_frames(frames, tmp_path / "way.avi")


def test_an_mp4_has_every_frame(tmp_path):
    av = pytest.importorskip("av")
    frames = [picture(seed, 28, 20).resize((23, 17)) for seed in range(5)]
    with av.open(str(save_frames(frames, tmp_path / "way.mp4"))) as film:
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(shown) == 4 + LINGER
    assert shown[0].shape == (18, 24, 3)  # the format has even sides
    assert abs(shown[-1].mean() - np.asarray(frames[-1]).mean()) < 8


def test_an_mp4_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"av is not installed; .*\[video\]"):
        save_frames([picture()] * 2, tmp_path / "way.mp4")
    assert not list(tmp_path.iterdir())


def test_metadata_is_json(tokenizer, scorer):
    targets = [Target("a"), Target(picture()), Target(3, 0.5)]
    settings = paint(tokenizer, {"tiny": scorer}, targets, PaintSettings(steps=0)).settings
    assert json.loads(json.dumps(settings, allow_nan=False))["prompts"][2] == {"noise": 3, "weight": 0.5}
