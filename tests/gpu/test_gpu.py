"""What needs a GPU: `make test-gpu`. Everything is skipped without one.

Whether tensors are on the right device, and whether a step waits, is tested without a GPU in `test_fake_cuda.py`.
"""

from dataclasses import replace

import pytest
import torch
from helpers.models import TRANSFORMER, make_transformer, randomise
from helpers.sampling import PROMPT, SETTINGS, requests_of_every_kind, sample

from dalle_mini_impl import DalleMini
from dalle_mini_impl.bench.shapes import SHAPES
from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.training import OptimizerConfig
from dalle_mini_impl.model import attention
from dalle_mini_impl.model.attention import attend, attend_in_blocks
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.masks import AttentionMask, contiguous_order, mask_matrix
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.painting.painter import PaintSettings, paint
from dalle_mini_impl.sampling.generate import generate_many
from dalle_mini_impl.sampling.graph_decoder import GraphDecoder
from dalle_mini_impl.sampling.packing import pack
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.train.losses.stream import StreamLoss, weighted_loss
from dalle_mini_impl.train.shared.optimizers import build_optimizers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

MASKS = {"attention_masks": ("row", "column"), "last_attention_mask": "conv", "mask_kernel": 3}


@pytest.mark.parametrize("changes", [{}, {"position": "learned"}, MASKS], ids=["rope", "learned", "masks"])
def test_recorded_steps_draw_the_ids_of_plain_ones(changes):
    plain, stream = make_transformer(**changes)
    plain = plain.cuda()
    decoder = GraphDecoder(plain, records=True)
    requests = requests_of_every_kind(stream)
    for _ in range(2):  # the second time what was recorded is used again
        for request, result in zip(requests, generate_many(decoder, stream, requests, chunk=64), strict=True):
            options = {"prune_to": request.prune_to, "known": request.known}
            expected = sample((plain, stream), request.seeds, request.prompt, request.sampling, **options)
            assert torch.equal(result.image_ids, expected.image_ids)
            torch.testing.assert_close(result.log_likelihood, expected.log_likelihood, rtol=1e-4, atol=1e-3)


def test_recorded_steps_are_graphs_that_are_used_again():
    transformer, stream = make_transformer()
    decoder = pack(transformer.cuda(), "bf16", stream.image_range)
    assert isinstance(decoder, GraphDecoder)
    sample((decoder, stream), range(8))
    (batch,) = decoder._unused.values()
    recorded = dict(batch._recorded)
    sample((decoder, stream), range(8))
    assert batch._recorded == recorded != {}
    assert all(isinstance(getattr(step, "__self__", None), torch.cuda.CUDAGraph) for step in recorded.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_steps_are_recorded_on_the_gpu_of_the_model():
    transformer, stream = make_transformer()
    transformer = transformer.to("cuda:1")
    found = sample((GraphDecoder(transformer, records=True), stream), range(4))
    assert torch.equal(found.image_ids, sample((transformer, stream), range(4)).image_ids)


def test_chunks_change_few_ids_in_bf16():
    shape = SHAPES["R"]
    decoder = pack(randomise(shape.build(), 0).cuda(), "bf16", shape.stream().image_range)
    together = sample((decoder, shape.stream()), range(32), chunk=32).image_ids
    apart = sample((decoder, shape.stream()), range(32), chunk=8).image_ids
    first = (together == apart)[:, 0].float().mean()  # a different id changes all after it: the first row is compared
    assert first > 0.95


@pytest.mark.parametrize("kind", ["row", "column", "conv", "axial_row", "conv_like"])
def test_attention_in_blocks_has_the_values_and_gradients_of_attention_with_the_matrix(kind):
    before, grid = 33, (16, 16)
    mask = AttentionMask(mask_matrix(kind, before, grid, 5), contiguous_order(kind, before, grid)).cuda()
    length = before + 255
    noise = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(2, 4, length, 32, device="cuda", generator=noise, requires_grad=True) for _ in range(3))
    expected = attend(q, k, v, mask.allowed[:length, :length])
    found = attend_in_blocks(q, k, v, mask)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    weights = torch.randn(found.shape, device="cuda", generator=noise)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), weights), torch.autograd.grad(expected, (q, k, v), weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("changes", [{}, MASKS], ids=["full", "masks"])
@pytest.mark.parametrize("compiled", [False, True])
def test_training_steps_have_the_losses_of_a_cpu(changes, compiled):
    layout = StreamConfig(text_length=15, text_vocab=367, grid=(8, 8), image_vocab=61, bos_id=2)
    config = replace(TRANSFORMER, n_embd=64, **changes)
    stream = Stream(layout)
    ids = stream.join(stream.prefix([[3, 4], [5]]), torch.randint(61, (2, 8, 8)))
    losses: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = StreamLoss(randomise(build_transformer(config, layout), 1).train(), stream).to(device)
        model.transformer.make_mask_blocks(stream.positions - 1)
        optimizers = build_optimizers(model, OptimizerConfig(muon_learning_rate=0.02))
        forward = torch.compile(model) if compiled and device == "cuda" else model
        losses[device] = []
        for _ in range(3):
            with torch.autocast(device, torch.bfloat16):
                text, image = forward(ids[:, :-1].to(device), ids[:, 1:].to(device))
            loss = weighted_loss(text, image, 7.0)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses[device].append(float(loss.detach()))
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.03)


def test_flash_attention_is_used_without_a_mask():
    q = torch.randn(2, 4, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        attention.attend_causally(q, q, q).sum().backward()


def test_the_included_model_draws_scores_and_paints():
    model = DalleMini.from_pretrained("emoji", "cuda")
    result = model.generate("a red heart", candidates=16, keep=4, seed=1)
    pixels = torch.tensor([[candidate.image.getpixel((32, 32)) for candidate in result]]).float()
    assert pixels[..., 0].mean() > pixels[..., 1].mean()  # redder than green
    scorers = [Scorer.from_pretrained("emoji", device) for device in ("cpu", "cuda")]
    pictures = [candidate.image for candidate in result]
    scores = [scorer.cosines(pictures, "a red heart") for scorer in scorers]
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=0.02)
    painting = paint(model.image_tokenizer, {"emoji": model.scorer}, "a red heart", PaintSettings(steps=3))
    assert painting.image.size == (64, 64)


def test_settings_of_a_batch_can_change_between_batches():
    transformer, stream = make_transformer()
    decoder = GraphDecoder(transformer.cuda(), records=True)
    for seed, temperature in ((1, 0.5), (2, 1.5), (3, 0.9)):
        settings = replace(SETTINGS, temperature=temperature)
        found = sample((decoder, stream), [seed, seed + 1], PROMPT, settings)
        expected = sample((decoder.transformer, stream), [seed, seed + 1], PROMPT, settings)
        assert torch.equal(found.image_ids, expected.image_ids)
    assert len(decoder._unused) == 1
