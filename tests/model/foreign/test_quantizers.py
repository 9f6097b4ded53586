"""Quantizers of imported image tokenizers choose ids as the originals do, in full precision."""

import pytest
import torch
from torch.nn import functional as F

from dalle_mini_impl.model.foreign import quantizers


def test_nearest_takes_the_first_of_equal_distances_in_any_number_of_batches(monkeypatch):
    quantizer = quantizers.Nearest(3, 2, cosine=False)
    quantizer.embedding.weight.data = torch.tensor([[1.0, 0], [0, 2], [1, 0]])
    z = torch.tensor([[[0.9, 0.1], [0.1, 1.2], [-1.0, 3.0]], [[5.0, 0.0], [0.0, 0.9], [-1.0, 0.0]]])
    vectors, ids, loss = quantizer(z)
    assert ids.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert vectors.tolist() == quantizer.embedding.weight[ids].tolist()
    assert float(loss) == 0
    monkeypatch.setattr(quantizers, "VECTORS_AT_A_TIME", 4)
    assert torch.equal(quantizer(z)[1], ids)


def test_cosine_distance_ignores_the_lengths_of_vectors():
    quantizer = quantizers.Nearest(2, 2, cosine=True)
    quantizer.embedding.weight.data = torch.tensor([[0.1, 0.0], [9.0, 9.0]])
    z = torch.tensor([[[100.0, 1.0], [0.01, 0.01]]])
    vectors, ids, _ = quantizer(z)
    assert ids.tolist() == [[0, 1]]
    torch.testing.assert_close(vectors[0], torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]]))


@pytest.mark.parametrize("kind", ["nearest", "logits"])
def test_ids_are_chosen_in_full_precision_under_autocast(kind):
    torch.manual_seed(0)
    quantizer = (
        quantizers.Nearest(61, 7, cosine=False)
        if kind == "nearest"
        else quantizers.Logits(7, 61, torch.nn.Embedding(61, 5))
    )
    z = torch.randn(5, 301, 7)
    ids = quantizer(z)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z)[1], ids)


def test_one_hot_convolution_equals_a_convolution_of_one_hot_ids():
    layer = quantizers.OneHotConvolution(61, 7)
    ids = torch.arange(60).view(3, 20)
    expected = F.conv1d(F.one_hot(ids, 61).movedim(-1, 1).float(), layer.weight[..., 0], layer.bias)
    torch.testing.assert_close(layer(ids), expected.movedim(1, -1))
