"""Lookup-free quantization (Yu et al. 2023, MAGVIT-2): an id is made of the signs of D channels, K = 2**D.

Not taken from vector-quantize-pytorch: its entropy loss does not average over processes (it divides by their number,
but drops the result of the all-reduce), and it needs a table of all vectors × all K ids.
"""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F


class LookupFree(nn.Module):
    """The sign of each of D channels; the first channel is the highest bit of the id.

    Two entropies keep all ids in use. Bit d is regarded as 1 with probability sigmoid(4 × sharpness × z_d). The mean
    entropy of single vectors is minimised, so that signs are certain; the entropy of the average distribution over all
    vectors of the batch is maximised, so that all ids occur.

    Args:
        embed_dim: D, the number of bits.
        commitment: weight of the squared distance to the quantized vector.
        entropy: weights of the two entropies, which are in nats.
        sharpness: inverse temperature of the probabilities.
    """

    bits: Tensor

    def __init__(self, embed_dim: int, commitment: float, entropy: tuple[float, float], sharpness: float = 1.0) -> None:
        super().__init__()
        self.codebook_size = 2**embed_dim
        self.commitment, self.entropy, self.sharpness = commitment, entropy, sharpness
        self.register_buffer("bits", 2 ** torch.arange(embed_dim - 1, -1, -1), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            ids = ((z > 0) * self.bits).sum(-1)
            quantized = self.lookup(ids)
            if not self.training:
                return quantized, ids, z.new_zeros(())
            single, varied = entropies(z.flatten(0, -2), self.sharpness)
            loss = self.commitment * F.mse_loss(z, quantized)
            loss = loss + self.entropy[0] * single - self.entropy[1] * varied
            return z + (quantized - z).detach(), ids, loss

    def lookup(self, image_ids: Tensor) -> Tensor:
        return ((image_ids[..., None] & self.bits) != 0).float() * 2 - 1

    def scores(self, z: Tensor) -> Tensor:
        """Z (N, D) -> logits (N, K) of the distribution whose entropies are in the loss."""
        signs = self.lookup(torch.arange(self.codebook_size, device=z.device))
        return 2 * self.sharpness * z.float() @ signs.T


def entropies(z: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """Mean entropy of the ids of single vectors, and entropy of their average distribution, in nats.

    Args:
        z: (N, D) vectors of this process; the average distribution is over all processes.
        sharpness: inverse temperature.
    """
    logits = 4 * sharpness * z
    # The bits of a vector are independent: their entropies add, and their probabilities multiply.
    single = (F.softplus(logits) - logits * torch.sigmoid(logits)).sum(-1).mean()
    bits = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)
    half = z.shape[-1] // 2
    average = _all_ids(bits[:, :half]).T @ _all_ids(bits[:, half:]) / len(z)
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        average = all_reduce(average) / torch.distributed.get_world_size()
    return single, -(average * average.clamp(min=1e-9).log()).sum()


def _all_ids(bits: Tensor) -> Tensor:
    """Log-probabilities (N, d, 2) of the values of d bits -> probabilities (N, 2**d) of all ids of d bits."""
    total = bits.new_zeros(len(bits), 1)
    for bit in bits.unbind(1):
        total = (total[:, :, None] + bit[:, None, :]).flatten(1)
    return total.exp()
