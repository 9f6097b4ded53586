"""DALL-E 1's quantizer: a choice among K vectors, relaxed with Gumbel noise in training."""

import math

import torch
from torch import Tensor, nn


class Gumbel(nn.Module):
    """The encoder's K logits choose a vector (Ramesh et al. 2021, section 2.1; Jang et al. 2016).

    In training the result is a mixture of the vectors with weights softmax((logits + noise) / temperature), which
    becomes a choice of one as the temperature falls. In evaluation mode it is the vector of the largest logit, without
    noise. The auxiliary loss is the Kullback-Leibler divergence of softmax(logits) from the uniform distribution, in
    nats per id, times `kl_weight`.

    The trainer sets the buffers `temperature` and `kl_weight` in place, following a schedule.
    """

    temperature: Tensor
    kl_weight: Tensor

    def __init__(self, codebook_size: int, embed_dim: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.codebook = nn.Parameter(torch.randn(codebook_size, embed_dim))
        self.register_buffer("temperature", torch.tensor(1.0), persistent=False)
        self.register_buffer("kl_weight", torch.tensor(0.0), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, n, K) -> mixed vectors (B, n, D), ids (B, n), loss."""
        with torch.autocast(z.device.type, enabled=False):
            logits = z.float()
            ids = logits.argmax(-1)
            if not self.training:
                return self.lookup(ids), ids, logits.new_zeros(())
            log_probabilities = logits.log_softmax(-1)
            divergence = (log_probabilities.exp() * log_probabilities).sum(-1).mean() + math.log(self.codebook_size)
            noise = -torch.empty_like(logits).exponential_().log()
            mixture = ((logits + noise) / self.temperature).softmax(-1)
            return mixture @ self.codebook, ids, self.kl_weight * divergence

    def lookup(self, image_ids: Tensor) -> Tensor:
        return self.codebook[image_ids]

    def scores(self, z: Tensor) -> Tensor:
        """The encoder's logits (N, K) as they are."""
        return z.float()
