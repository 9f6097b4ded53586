import copy
import math

import pytest
import torch
from conftest import make_transformer, randomise

from dalle_mini_impl import packing
from dalle_mini_impl.config import SamplingConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.generate import Prompt, generate
from dalle_mini_impl.packing import Int8Linear, PackedLinear, choose_precision, pack
from dalle_mini_impl.stream import Stream
from dalle_mini_impl.transformer import build_transformer

needs_bf16 = pytest.mark.skipif(not packing.has_bf16(), reason="this CPU has no bf16")
PROMPT = Prompt((5, 300, 17), (41, 2))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(precision, position="rope"):
    transformer, stream = make_transformer(position)
    return pack(transformer, precision, stream.image_range), stream


# --- layers against the same product in full precision


@needs_bf16
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_a_packed_layer_is_the_product(rows):
    weight, x = noise(37, 59), noise(rows, 59, seed=1).bfloat16()
    expected = x.double() @ weight.bfloat16().double().T
    with torch.inference_mode():
        y = PackedLinear(weight)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-6)  # one rounding to bf16


@needs_bf16
@pytest.mark.parametrize("rows", [1, 3])
def test_an_int8_layer_is_the_product_of_rounded_weights(rows):
    weight, x = noise(32, 64), noise(2, rows, 64, seed=1).bfloat16()
    layer = Int8Linear(weight)
    scale = weight.abs().amax(1) / 127
    assert ((layer.weight.float() * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-6).all()
    expected = x.double() @ (layer.weight.double() * layer.scale.double()[:, None]).T
    with torch.inference_mode():
        y = layer(x)
    assert y.shape == (2, rows, 32)
    torch.testing.assert_close(y.double(), expected, rtol=2**-7, atol=2**-7 * float(expected.abs().max()))


@needs_bf16
@pytest.mark.parametrize("kind", [PackedLinear, Int8Linear])
def test_what_follows_a_layer_can_be_part_of_it(kind):
    layer, x, other = kind(noise(32, 64)), noise(3, 64, seed=1).bfloat16(), noise(3, 32, seed=2).bfloat16()
    with torch.inference_mode():
        y = layer(x).float()
        results = layer.swish(x), layer.times(x, other), layer.plus(x, other)
    for result, expected in zip(results, (y * y.sigmoid(), y * other, y + other), strict=True):
        torch.testing.assert_close(result.float(), expected, rtol=2**-6, atol=2**-6)


# --- the whole model


@needs_bf16
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_packing_loses_no_more_than_bf16_does(position):
    layout = StreamConfig(text_length=7, text_vocab=313, grid=(3, 5), image_vocab=64, bos_id=1)
    config = TransformerConfig(n_layer=3, n_head=2, n_embd=64, position=position)
    exact, stream = randomise(build_transformer(config, layout), 3), Stream(layout)
    ids = torch.randint(exact.vocab_size, (13, stream.length), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def logits(transformer):
        return transformer.logits(transformer(ids), stream.image_range).float()

    def distance(transformer):
        return float((logits(transformer) - logits(exact)).square().mean().sqrt())

    rounded = copy.deepcopy(exact)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight", "head.weight")):
                scale = weight.abs().amax(1, keepdim=True) / 127
                weight.copy_((weight / scale).round() * scale)
    plain, weights = distance(copy.deepcopy(exact).bfloat16()), distance(rounded)
    packed, int8 = (distance(pack(copy.deepcopy(exact), name, stream.image_range)) for name in ("bf16", "int8"))
    assert 0 < plain < 0.03 * float(logits(exact).std())
    assert 0 < packed < 1.1 * plain
    assert weights < int8 < 1.1 * math.hypot(weights, plain)  # two independent errors


@needs_bf16
def test_a_candidate_does_not_depend_on_the_others():
    model, seeds = packed("bf16"), list(range(100, 137))
    settings = SamplingConfig(temperature=0.9, guidance=2.5)
    whole = generate(*model, PROMPT, seeds, settings).image_ids
    assert len(whole.flatten(1).unique(dim=0)) == 37
    for number in (0, 17, 36):
        assert torch.equal(generate(*model, PROMPT, [seeds[number]], settings).image_ids[0], whole[number])
    assert torch.equal(generate(*model, PROMPT, seeds, settings, chunk=7).image_ids, whole)


@needs_bf16
def test_cached_equals_uncached():
    # Greedy ids from the cache, then the whole stream at once: each id must be among the likeliest there too
    transformer, stream = packed("bf16")
    drawn = generate(transformer, stream, PROMPT, [1], SamplingConfig(temperature=0.0, guidance=1.0)).image_ids
    ids = stream.join(stream.prefix([PROMPT.text_ids]), drawn)
    with torch.inference_mode():
        logits = transformer.logits(
            transformer(ids[:, :-1])[:, stream.config.text_length :], stream.image_range
        ).float()
    lost = logits.amax(-1) - logits.gather(-1, drawn.flatten(1)[..., None])[..., 0]
    assert float(lost.max()) < 0.1


def test_full_precision_changes_nothing():
    transformer, stream = make_transformer()
    before = copy.deepcopy(transformer.state_dict())
    ours = pack(transformer, "fp32", stream.image_range)
    assert ours is transformer
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@needs_bf16
def test_odd_widths_can_be_packed():
    layout = StreamConfig(text_length=3, text_vocab=11, grid=(2, 3), image_vocab=7, bos_id=1)
    transformer = build_transformer(TransformerConfig(n_layer=1, n_head=1, n_embd=20), layout)
    stream = Stream(layout)
    for precision in ("bf16", "int8"):
        ours = pack(copy.deepcopy(transformer), precision, stream.image_range)
        assert generate(ours, stream, Prompt((2,)), [1, 2], SamplingConfig()).image_ids.shape == (2, 2, 3)


# --- the choice


def test_the_fastest_precision_is_chosen(monkeypatch):
    for has, best in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(packing, "has_bf16", lambda has=has: has)
        assert choose_precision("auto", "cpu") == best
        assert choose_precision("auto", "cuda:0") == "bf16"
        assert choose_precision("auto", "mps") == "fp32"
        assert choose_precision("fp32", "cpu") == "fp32"


def test_a_precision_that_cannot_be_had_is_refused(monkeypatch):
    with pytest.raises(UserError, match="unknown precision 'fp8'; expected auto, fp32"):
        choose_precision("fp8", "cpu")
    with pytest.raises(UserError, match="int8 was given with device cuda; it is for cpu"):
        choose_precision("int8", "cuda")
    monkeypatch.setattr(packing, "has_bf16", lambda: False)
    for precision in ("bf16", "int8"):
        with pytest.raises(UserError, match=f"precision {precision} was given, but this CPU has no bf16; use fp32"):
            choose_precision(precision, "cpu")
