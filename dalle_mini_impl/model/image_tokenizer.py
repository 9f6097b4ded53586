"""The image tokenizer: pixels (B, 3, H, W) in [-1, 1] <-> image ids (B, h, w)."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import load_module, read_part
from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.build import build_image_networks
from dalle_mini_impl.model.logit_laplace import mean_pixels
from dalle_mini_impl.model.stream import check_ids
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.pixels import check_pixels

CELLS_AT_A_TIME = 4096
"""`encode_soft` computes the probabilities of all ids for so many cells at a time, which bounds memory."""
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Reconstruction:
    """The result of encoding, quantizing and decoding with gradients."""

    pixels: Tensor
    """(B, 3, H, W) decoded pixels."""
    decoded: Tensor
    """Output of the decoder: the pixels, or the parameters of their distribution (see `logit_laplace`)."""
    image_ids: Tensor
    """(B, h, w) ids."""
    auxiliary: Tensor
    """Scalar loss of the quantizer, such as the commitment loss."""


class ImageTokenizer(nn.Module):
    """VQ-VAE (van den Oord et al. 2017): pictures as grids of K different image ids.

    Any picture size that is a multiple of `factor` works; `config.size` is the one it was trained at.

    Args:
        config: the shape. `config.network` may name the network of another project, for imported weights.
        commitment: weight of the commitment loss in training; None makes a tokenizer that cannot be trained.
        entropy: weights of the two entropies in training, with `lfq`.

    Raises:
        UserError: the config's values do not fit together.
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
        # Channels-last convolutions round differently; imported networks were checked against the usual layout.
        self.memory_format = torch.channels_last if config.network == "vqvae" else torch.contiguous_format

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu") -> "ImageTokenizer":
        """The image tokenizer of a shipped model or a checkpoint folder."""
        return load_image_tokenizer(name, device)[0]

    @property
    def codebook_size(self) -> int:
        """K, the number of image ids."""
        return self.config.codebook_size

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def forward(self, pixels: Tensor, image_ids: Tensor | None = None) -> Reconstruction:
        """Encode, quantize and decode with gradients.

        Args:
            pixels: (B, 3, H, W) in [-1, 1], H and W multiples of `factor`.
            image_ids: (B, h, w) ids to decode in place of those of the pixels, which are then not looked at.
        """
        if image_ids is not None:
            with torch.autocast(image_ids.device.type, enabled=False):
                z = self._vectors(image_ids).contiguous(memory_format=self.memory_format)
            decoded = self.decoder(z)
            return Reconstruction(self._pixels(decoded), decoded, image_ids, z.new_zeros(()))
        z = self._encode(pixels)
        h = z.shape[-2]
        quantized, ids, auxiliary = self.quantizer(rearrange(z, "B D h w -> B (h w) D"))
        z = rearrange(quantized, "B (h w) D -> B D h w", h=h).contiguous(memory_format=self.memory_format)
        decoded = self.decoder(z)
        return Reconstruction(self._pixels(decoded), decoded, rearrange(ids, "B (h w) -> B h w", h=h), auxiliary)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> image ids (B, h, w) int64. Never changes the codebook.

        Args:
            pixels: of any floating-point type, or uint8 values from 0 to 255, on any device.

        Raises:
            UserError: these are no such pixels, or the size is not a multiple of `factor`.
        """
        z = self._encode(self._checked(pixels))
        return rearrange(self._quantize(z), "B (h w) -> B h w", h=z.shape[-2])

    @torch.inference_mode()
    def encode_soft(self, pixels: Tensor, count: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Encode with the likeliest ids of each cell. Only for tokenizers made with `commitment=None`.

        The probability of an id is the softmax of scores / `temperature`. The scores are the encoder's logits if it
        has some (`gumbel`, `logits`; with temperature 1 these are the dVAE's own probabilities), else minus the squared
        distances between z and the vectors of the ids, both as the quantizer compares them (`vq` and `cosine`: scaled
        to length 1; `fsq`: with neighbouring levels at distance 1).

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            count: k, the number of ids for each cell, at most K.
            temperature: above 0; a higher one makes the probabilities more even.

        Returns:
            The ids (B, h, w) as `encode` returns them; the k likeliest ids (B, h, w, k) int64, likeliest first; and
            their probabilities (B, h, w, k) float32, which sum to less than 1 if k < K.
        """
        z = self._encode(self._checked(pixels))
        ids = self._quantize(z)
        top = []
        with torch.autocast(z.device.type, enabled=False):
            for rows in rearrange(z, "B D h w -> (B h w) D").split(CELLS_AT_A_TIME):
                top.append((self.quantizer.scores(rows) / temperature).softmax(-1).topk(count))
        grid = (len(z), *z.shape[-2:])
        probabilities, likely_ids = (torch.cat(parts).unflatten(0, grid) for parts in zip(*top, strict=True))
        return ids.view(grid), likely_ids, probabilities

    @torch.inference_mode()
    def decode(self, image_ids: Tensor, tile: bool = False) -> Tensor:
        """Image ids (B, h, w) in [0, K) -> pixels (B, 3, H, W) clamped to [-1, 1].

        Args:
            image_ids: the ids, of any integer type, on any device.
            tile: pad with the opposite edge instead of zeros in all convolutions, so that copies of the picture fit
                together without seams.

        Raises:
            UserError: these are no such ids, one is out of range, or `tile` is not supported by this decoder.
        """
        image_ids = check_ids(image_ids, self.codebook_size, "image").to(self.device)
        if image_ids.ndim != 3:
            raise UserError(
                f"expected image ids of shape (B, h, w), got {tuple(image_ids.shape)}; write image_ids[None] for one "
                f"picture"
            )
        z = self._vectors(image_ids)
        return self._decode(with_circular_padding(self.decoder) if tile else self.decoder, z).clamp(-1, 1)

    def decode_z(self, z: Tensor) -> Tensor:
        """Decode vectors (B, D, h, w), as in `table`, to pixels (B, 3, H, W) with gradients, not clamped."""
        return self._decode(self.decoder, z)

    def _vectors(self, image_ids: Tensor) -> Tensor:
        """Ids (B, h, w) -> z (B, D, h, w), as the decoder takes it."""
        vectors = self.quantizer.lookup(rearrange(image_ids, "B h w -> B (h w)"))
        return rearrange(vectors, "B (h w) D -> B D h w", h=image_ids.shape[-2])

    def _decode(self, decoder: nn.Module, z: Tensor) -> Tensor:
        return self._pixels(decoder(z.contiguous(memory_format=self.memory_format))).float()

    @torch.no_grad()
    def table(self) -> Tensor:
        """The vectors (K, D) of all ids, as the decoder takes them."""
        all_ids = torch.arange(self.codebook_size, device=self.device)
        return self.quantizer.lookup(all_ids[None])[0].clone()

    def _pixels(self, decoded: Tensor) -> Tensor:
        return mean_pixels(decoded) if self.config.likelihood == "laplace" else decoded

    def _quantize(self, z: Tensor) -> Tensor:
        """Z (B, D, h, w) -> ids (B, h × w), in evaluation mode: no noise, and the codebook does not change."""
        quantizer = copy_sharing_weights(self.quantizer).eval() if self.quantizer.training else self.quantizer
        return quantizer(rearrange(z, "B D h w -> B (h w) D"))[1]

    def _checked(self, pixels: Tensor) -> Tensor:
        """Pixels in the type and on the device of the weights."""
        check_pixels(pixels)
        if pixels.dtype == torch.uint8:
            pixels = pixels / 127.5 - 1
        return pixels.to(next(self.parameters()))

    def _encode(self, pixels: Tensor) -> Tensor:
        factor = self.config.factor
        if pixels.shape[-2] % factor or pixels.shape[-1] % factor:
            raise UserError(
                f"expected pictures whose sides are multiples of {factor} pixels, "
                f"got {pixels.shape[-2]}×{pixels.shape[-1]}; resize or crop them"
            )
        return self.encoder(pixels.contiguous(memory_format=self.memory_format)).float()


def load_image_tokenizer(name: str | Path, device: str = "cpu") -> tuple[ImageTokenizer, str]:
    """The image tokenizer of a model, which cannot be trained, and its identity."""
    part = read_part(find_checkpoint(name), "image_tokenizer")
    config = from_dict(ImageTokenizerConfig, part.config, str(part.path))
    return load_module(lambda: ImageTokenizer(config, commitment=None), part, device), part.identity


def with_circular_padding(network: M) -> M:
    """A network with the same weights in which every padded convolution pads with the opposite edge, not with zeros.

    All other layers (norms over all cells, attention without positions) treat all cells alike. So rolling the input
    rolls the output. The network itself stays as it is, because other threads may be using it.

    Raises:
        UserError: the network has transposed convolutions, for which PyTorch has no circular padding.
    """
    if any(isinstance(layer, nn.ConvTranspose2d) for layer in network.modules()):
        raise UserError("expected a decoder without transposed convolutions for tile, got one with; leave tile out")
    circular = copy_sharing_weights(network)
    for layer in circular.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0):
            layer.padding_mode = "circular"
    return circular


def copy_sharing_weights(module: M) -> M:
    """A copy of a module whose parameters and buffers are those of the module itself."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)  # type: ignore[arg-type]  # the copies that it need not make
