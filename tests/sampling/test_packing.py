import copy
import math

import pytest
import torch
from helpers.models import make_transformer, randomise

from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling import packing
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.likelihood import log_likelihood
from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.packing import choose_precision, pack
from dalle_mini_impl.util.errors import UserError

needs_compiler = pytest.mark.skipif(load() is None, reason="there is no C compiler with OpenMP")
LAYOUT = StreamConfig(text_length=3, text_vocab=11, grid=(2, 3), image_vocab=7, bos_id=1)
PROMPT = Prompt((5, 300, 17), (41, 2))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FOREIGN = {
    "attention_masks": ("column", "row", "conv"),
    "mask_kernel": 3,
    "block": BlockConfig(norm="layer", mlp="geglu", bias=True, qk_norm=False, rotate_values=True, token_shift=True),
}
every_kind = pytest.mark.parametrize("options", [{}, FOREIGN], ids=["plain", "foreign"])


def packed(precision, **options):
    layout = StreamConfig(text_length=7, text_vocab=367, grid=(3, 5), image_vocab=61, bos_id=1)
    config = TransformerConfig(n_layer=3, n_head=2, n_embd=64, **options)
    transformer = randomise(build_transformer(config, layout), 3)
    return pack(transformer, precision, Stream(layout).image_range), Stream(layout)


# --- the whole model


@needs_compiler
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
    bf16, int8 = (distance(pack(copy.deepcopy(exact), name, stream.image_range)) for name in ("bf16", "int8"))
    assert 0 < plain < 0.03 * float(logits(exact).std())
    assert 0 < bf16 < 1.1 * plain
    assert weights < int8 < 1.1 * math.hypot(weights, plain)  # two independent errors


@needs_compiler
@every_kind
def test_a_candidate_does_not_depend_on_other_candidates(options):
    model, seeds = packed("bf16", **options), list(range(100, 137))
    settings = SamplingConfig(temperature=0.9, guidance=2.5)
    whole = generate(*model, PROMPT, seeds, settings).image_ids
    assert len(whole.flatten(1).unique(dim=0)) == 37
    for number in (0, 17, 36):
        assert torch.equal(generate(*model, PROMPT, [seeds[number]], settings).image_ids[0], whole[number])
    assert torch.equal(generate(*model, PROMPT, seeds, settings, chunk=7).image_ids, whole)


@needs_compiler
@every_kind
def test_candidates_that_survive_pruning_stay_the_same(options):
    model, settings = packed("bf16", **options), SamplingConfig(temperature=0.9, guidance=2.5)
    whole = generate(*model, PROMPT, list(range(29)), settings)
    pruned = generate(*model, PROMPT, list(range(29)), settings, prune_to=3)
    assert len(pruned.indices) == 8
    assert pruned.indices.tolist() != list(range(8))
    assert torch.equal(pruned.image_ids, whole.image_ids[pruned.indices])
    assert torch.equal(pruned.log_likelihood, whole.log_likelihood[pruned.indices])


@needs_compiler
@every_kind
def test_known_ids_are_shared_and_counted(options):
    model, settings = packed("bf16", **options), SamplingConfig(temperature=0.9, guidance=2.5)
    first = generate(*model, PROMPT, [3], settings).image_ids[0]
    redraw = torch.zeros(first.shape, dtype=torch.bool)
    redraw[1:, 2:] = True
    sampled = generate(*model, PROMPT, list(range(11)), settings, known=KnownIds(first, redraw), chunk=4)
    assert torch.equal(sampled.image_ids[:, ~redraw], first[~redraw].expand(11, -1))
    assert len(sampled.image_ids.flatten(1).unique(dim=0)) == 11
    expected = log_likelihood(*model, PROMPT.text_ids, sampled.image_ids).sum(1)
    torch.testing.assert_close(sampled.log_likelihood, expected, atol=0.5, rtol=0.01)
    assert torch.equal(
        generate(*model, PROMPT, [7], settings, known=KnownIds(first, redraw)).image_ids[0], sampled.image_ids[7]
    )


@needs_compiler
@every_kind
def test_cached_equals_uncached(options):
    # Greedy ids sampled with the cache must be among the likeliest when the whole stream runs at once
    transformer, stream = packed("bf16", **options)
    sampled = generate(transformer, stream, PROMPT, [1], SamplingConfig(temperature=0.0, guidance=1.0)).image_ids
    ids = stream.join(stream.prefix([PROMPT.text_ids]), sampled)
    with torch.inference_mode():
        logits = transformer.logits(
            transformer(ids[:, :-1])[:, stream.config.text_length :], stream.image_range
        ).float()
    lost = logits.amax(-1) - logits.gather(-1, sampled.flatten(1)[..., None])[..., 0]
    assert float(lost.max()) < 0.1


def test_fp32_is_the_transformer_itself():
    transformer, stream = make_transformer()
    assert pack(transformer, "fp32", stream.image_range) is transformer


@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@every_kind
def test_packing_leaves_the_transformer_as_it_is(precision, options):
    config = TransformerConfig(n_layer=3, n_head=2, n_embd=64, **options)
    transformer = randomise(build_transformer(config, LAYOUT), 3).train()
    before = copy.deepcopy(transformer.state_dict())
    attributes = {name: id(value) for name, value in vars(transformer).items()}
    decoder = pack(transformer, precision, Stream(LAYOUT).image_range)
    with torch.inference_mode():
        decoder.logits(decoder(torch.tensor([[1, 2, 3]])), Stream(LAYOUT).image_range)
    assert {name: id(value) for name, value in vars(transformer).items()} == attributes
    assert transformer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())
    assert all(parameter.requires_grad for parameter in transformer.parameters())
    assert transformer.training


def test_on_other_devices_packing_makes_a_bf16_copy():
    transformer = build(64).to("meta")
    decoder = pack(transformer, "bf16", Stream(LAYOUT).image_range)
    assert isinstance(decoder, Transformer)
    assert {value.dtype for value in transformer.parameters()} == {torch.float32}
    assert {value.dtype for value in decoder.parameters()} == {torch.bfloat16}
    assert decoder.state_dict().keys() == transformer.state_dict().keys()
    assert not decoder.training


@needs_compiler
def test_logits_of_other_ids_than_those_packed_for():
    decoder, stream = packed("bf16")
    hidden = decoder(torch.arange(8)[None])
    every = decoder.logits(hidden)
    assert every.shape == (1, 8, stream.vocab_size)
    for allowed in (stream.text_range, (5, 7)):
        torch.testing.assert_close(decoder.logits(hidden, allowed), every[..., slice(*allowed)])
    torch.testing.assert_close(
        decoder.logits(hidden, stream.image_range), every[..., slice(*stream.image_range)], atol=0.1, rtol=0.02
    )


@needs_compiler
def test_decoders_have_the_device_of_their_weights():
    assert packed("bf16")[0].device == packed("fp32")[0].device == torch.device("cpu")


# --- the choice


def build(width, **options):
    return build_transformer(TransformerConfig(n_layer=1, n_head=1, n_embd=width, **options), LAYOUT)


@pytest.fixture(params=[True, False], ids=["compiler", "no compiler"])
def compiler(request, monkeypatch):
    monkeypatch.setattr(packing, "load", lambda: object() if request.param else None)
    return request.param


def test_the_fastest_precision_is_chosen(compiler):
    wide, odd, foreign = build(64), build(20), build(64, **FOREIGN)
    assert choose_precision("auto", wide) == ("bf16" if compiler else "fp32")
    assert choose_precision("auto", foreign) == ("bf16" if compiler else "fp32")
    assert choose_precision("auto", odd) == "fp32"
    assert choose_precision("fp32", wide) == "fp32"
    assert choose_precision("auto", wide.to("meta")) == "fp32"  # as any device but CPU and CUDA


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_unsupported_precisions_are_refused(monkeypatch, precision):
    wide, odd = build(64), build(20)
    monkeypatch.setattr(packing, "load", lambda: object())
    with pytest.raises(
        UserError, match=f"{precision} needs compiled code, but it does not support n_embd 20 with n_head 1 of 20"
    ):
        choose_precision(precision, odd)
    monkeypatch.setattr(packing, "load", lambda: None)
    with pytest.raises(
        UserError, match=f"{precision} needs compiled code, but there is no C compiler with OpenMP; use fp32"
    ):
        choose_precision(precision, wide)


def test_unknown_precisions_are_refused():
    transformer = build(64)
    with pytest.raises(UserError, match="expected precision auto, fp32, bf16, int8, got 'fp8'"):
        choose_precision("fp8", transformer)
    with pytest.raises(UserError, match="expected device cpu with precision int8, got meta; use bf16"):
        choose_precision("int8", transformer.to("meta"))


# --- patches of image ids


def patch_model(norm="rms", **options):
    layout = StreamConfig(text_length=7, text_vocab=367, grid=(4, 6), image_vocab=61, bos_id=1, patch=2)
    config = TransformerConfig(
        n_layer=3, n_head=2, n_embd=64, patch=2, depth_layers=2, block=BlockConfig(norm=norm), **options
    )
    return randomise(build_transformer(config, layout), 3), Stream(layout)


@needs_compiler
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_packed_patches_lose_no_more_than_bf16_does(norm, position):
    exact, stream = patch_model(norm, position=position)
    ids = torch.randint(61, (13, 4, 6), generator=torch.Generator().manual_seed(0))
    ids = stream.join(stream.prefix([[5, 300, 17]] * 13), ids)

    @torch.inference_mode()
    def logits(transformer):
        return transformer.logits(transformer(ids), stream.image_range).float()

    expected = logits(exact)
    distance = float((logits(pack(exact, "bf16", stream.image_range)) - expected).square().mean().sqrt())
    rounded = float((logits(copy.deepcopy(exact).bfloat16()) - expected).square().mean().sqrt())
    assert 0 < distance < 1.5 * rounded


@needs_compiler
@pytest.mark.parametrize("sizes", [[1] * 32, [8, 1, 1, 4] + [1] * 18, [8, 4, 4, 1, 15], [9, 2, 1, 5, 1, 14]])
def test_packed_patches_decode_some_ids_at_once_as_all(sizes):
    exact, stream = patch_model()
    decoder = pack(exact, "bf16", stream.image_range)
    ids = torch.randint(61, (3, 4, 6), generator=torch.Generator().manual_seed(0))
    ids = stream.join(stream.prefix([[5, 300, 17]] * 3), ids)
    cache = decoder.new_cache(3)
    with torch.inference_mode():
        parts = [decoder(part, cache) for part in ids.split(sizes, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), decoder(ids), atol=2e-2, rtol=0)


@needs_compiler
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_packed_patches_decode_id_by_id_as_in_one_pass(precision):
    exact, stream = patch_model()
    decoder = pack(exact, precision, stream.image_range)
    settings = SamplingConfig(temperature=0.9, top_k=17, guidance=2.0)
    drawn = generate(decoder, stream, PROMPT, [3, 4, 5, 6, 7], settings, chunk=3)
    nats = log_likelihood(decoder, stream, PROMPT.text_ids, drawn.image_ids).sum(1)
    torch.testing.assert_close(nats, drawn.log_likelihood, atol=2e-2, rtol=0)
    alone = generate(decoder, stream, PROMPT, [5], settings)
    assert torch.equal(alone.image_ids[0], drawn.image_ids[2])
    pruned = generate(decoder, stream, PROMPT, [3, 4, 5, 6, 7], settings, prune_to=2)
    assert torch.equal(pruned.image_ids, drawn.image_ids[pruned.indices])
    known = KnownIds(drawn.image_ids[0], torch.arange(24).view(4, 6) > 15)
    again = generate(decoder, stream, PROMPT, [3], settings, known=known)
    assert torch.equal(again.image_ids[:, :2], drawn.image_ids[:1, :2])
