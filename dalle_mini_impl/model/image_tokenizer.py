"""The image tokenizer: pixels (B, 3, H, W) in [-1, 1] <-> image ids (B, h, w)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import load_weights, read_part
from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.build import build_image_networks
from dalle_mini_impl.model.logit_laplace import mean_pixels
from dalle_mini_impl.model.stream import check_ids
from dalle_mini_impl.util.errors import UserError

ROWS = 4096
"""Places whose probabilities of all ids are held at a time."""


@dataclass(frozen=True)
class Reconstruction:
    """What one training pass gives."""

    pixels: Tensor
    """(B, 3, H, W) decoded pixels."""
    decoded: Tensor
    """What the decoder gave, which the pixels are made of."""
    image_ids: Tensor
    """(B, h, w) ids."""
    auxiliary: Tensor
    """Scalar loss of the quantizer itself, such as what keeps z near its codebook vectors."""


class ImageTokenizer(nn.Module):
    """VQ-VAE (van den Oord et al. 2017): a discrete alphabet of K image ids, learned from pictures.

    `config.network` may name the network of another project, whose weights were imported.

    Any picture size that is a multiple of `factor` works; the config's size is the one it was trained at.

    Args:
        config: its shape.
        commitment: weight of the commitment loss in training; None makes a tokenizer that is only used.
        entropy: weights of the entropies in training, with `lfq`.

    Raises:
        UserError: the config's numbers do not fit together.
    """

    def __init__(
        self,
        config: ImageTokenizerConfig,
        commitment: float | None = 0.25,
        entropy: tuple[float, float] = (0.1, 0.1),
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder, self.quantizer = build_image_networks(config, commitment, entropy)
        # The fast layout rounds otherwise than the plain one, in which imported networks have their reference.
        self.memory_format = torch.channels_last if config.network == "vqvae" else torch.contiguous_format

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu") -> "ImageTokenizer":
        """The image tokenizer of a shipped model or a checkpoint folder."""
        return load_image_tokenizer(name, device)[0]

    @property
    def codebook_size(self) -> int:
        """K, number of image ids."""
        return self.config.codebook_size

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def forward(self, pixels: Tensor) -> Reconstruction:
        """Encode, quantize and decode with gradients.

        Args:
            pixels: (B, 3, H, W) in [-1, 1], H and W multiples of `factor`.
        """
        z = self._encode(pixels)
        h = z.shape[-2]
        quantized, ids, auxiliary = self.quantizer(rearrange(z, "B D h w -> B (h w) D"))
        z = rearrange(quantized, "B (h w) D -> B D h w", h=h).contiguous(memory_format=self.memory_format)
        decoded = self.decoder(z)
        return Reconstruction(self._pixels(decoded), decoded, rearrange(ids, "B (h w) -> B h w", h=h), auxiliary)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> image ids (B, h, w) int64. Never changes the codebook.

        Raises:
            UserError: the size is not a multiple of `factor`.
        """
        z = self._encode(pixels)
        return rearrange(self._quantize(z), "B (h w) -> B h w", h=z.shape[-2])

    @torch.inference_mode()
    def encode_soft(self, pixels: Tensor, count: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Encode with the likeliest ids of each place; of a tokenizer that was loaded, not of one that learns.

        How likely an id is: softmax of scores over `temperature`. The scores are the logits where an encoder gives
        some (`gumbel`, `logits`; at 1 the probabilities are the dVAE's own), else minus the squared distances between z
        and the vectors of the ids, both as they are compared (`vq` and `cosine`: at length 1; `fsq`: levels 1 apart).

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            count: k, ids to give for each place, at most K.
            temperature: above 0; the higher, the more even the probabilities.

        Returns:
            What `encode` gives; the k likeliest ids (B, h, w, k) int64, likeliest first; their probabilities
            (B, h, w, k) float32, whose sum falls short of 1 by what all other ids have.
        """
        z = self._encode(pixels)
        ids, found = self._quantize(z), []
        with torch.autocast(z.device.type, enabled=False):
            for rows in rearrange(z, "B D h w -> (B h w) D").split(ROWS):
                found.append((self.quantizer.scores(rows) / temperature).softmax(-1).topk(count))
        places = (len(z), *z.shape[-2:])
        shares, likely = (torch.cat(parts).unflatten(0, places) for parts in zip(*found, strict=True))
        return ids.view(places), likely, shares

    @torch.inference_mode()
    def decode(self, image_ids: Tensor, tile: bool = False) -> Tensor:
        """Image ids (B, h, w) in [0, K) -> pixels (B, 3, H, W) clamped to [-1, 1].

        Args:
            image_ids: the ids.
            tile: beyond each edge the decoder sees the opposite one instead of zeros, so that pictures can be laid
                side by side.

        Raises:
            UserError: an id is out of range, or this decoder cannot tile.
        """
        check_ids(image_ids, self.codebook_size, "image")
        vectors = self.quantizer.lookup(rearrange(image_ids, "B h w -> B (h w)"))
        z = rearrange(vectors, "B (h w) D -> B D h w", h=image_ids.shape[-2])
        with circular_padding(self.decoder) if tile else nullcontext():
            return self.decode_z(z).clamp(-1, 1)

    def decode_z(self, z: Tensor) -> Tensor:
        """Vectors (B, D, h, w) of ids, as `table` has them -> pixels (B, 3, H, W), not clamped, with gradients."""
        return self._pixels(self.decoder(z.contiguous(memory_format=self.memory_format))).float()

    @torch.no_grad()
    def table(self) -> Tensor:
        """The vector of every id, as the decoder takes them: (K, D)."""
        all_ids = torch.arange(self.codebook_size, device=self.device)
        return self.quantizer.lookup(all_ids[None])[0].clone()

    def _pixels(self, decoded: Tensor) -> Tensor:
        return mean_pixels(decoded) if self.config.likelihood == "laplace" else decoded

    def _quantize(self, z: Tensor) -> Tensor:
        """Z (B, D, h, w) -> ids (B, h × w)."""
        was_training, _ = self.quantizer.training, self.quantizer.eval()
        ids = self.quantizer(rearrange(z, "B D h w -> B (h w) D"))[1]
        self.quantizer.train(was_training)
        return ids

    def _encode(self, pixels: Tensor) -> Tensor:
        factor = self.config.factor
        if pixels.shape[-2] % factor or pixels.shape[-1] % factor:
            raise UserError(
                f"pictures of {pixels.shape[-2]}×{pixels.shape[-1]} pixels were given; "
                f"both sides must be multiples of {factor}"
            )
        return self.encoder(pixels.contiguous(memory_format=self.memory_format)).float()


def load_image_tokenizer(name: str | Path, device: str = "cpu") -> tuple[ImageTokenizer, str]:
    """The image tokenizer of a model, ready for use, and its identity."""
    part = read_part(find_checkpoint(name), "image_tokenizer")
    module = ImageTokenizer(from_dict(ImageTokenizerConfig, part.config, str(part.path)), commitment=None)
    return load_weights(module, part, device), part.identity


@contextmanager
def circular_padding(network: nn.Module) -> Iterator[None]:
    """While it lasts, every padded convolution of a network sees the opposite edge beyond each edge.

    Norms over all places and attention among them do not care where a place lies. So what the network makes of
    rolled input is its output, rolled.

    Raises:
        UserError: the network has transposed convolutions, which PyTorch cannot wrap.
    """
    if any(isinstance(layer, nn.ConvTranspose2d) for layer in network.modules()):
        raise UserError("tile was given to a decoder with transposed convolutions; use another image tokenizer")
    padded = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0)]
    for layer in padded:
        layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer in padded:
            layer.padding_mode = "zeros"
