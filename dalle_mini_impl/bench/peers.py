"""Peers to compare with: dalle-pytorch 1.6.6 and a Llama-style language model of the transformers library.

Nothing else needs them. A peer that is not installed is left out.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.bench.shapes import Shape
from dalle_mini_impl.util.errors import UserError, need_extra

GUIDANCE = 3.0
"""Scale of classifier-free guidance in all comparisons."""
TOP_K = 256
"""Image ids to sample from in all comparisons."""

STAND_INS = ("requests", "torchvision", "omegaconf", "taming", "taming.models", "taming.models.vqgan", "pkg_resources")
"""Modules that dalle-pytorch imports but does not use here; some can no longer be installed, so empty ones are used."""


class Peer(Protocol):
    """A model that can sample image ids and be trained."""

    name: str

    def sample(self, candidates: int, guided: bool) -> Tensor:
        """Sample image ids (candidates, h * w) for one caption."""
        ...

    def loss(self, text_ids: Tensor, image_ids: Tensor) -> Tensor:
        """Mean nats of text ids (B, L) and image ids (B, h * w), those of image ids weighted by 7."""
        ...


def import_dalle_pytorch() -> Any:
    """Import the dalle-pytorch package, with empty modules in place of `STAND_INS` during the import.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("dalle_pytorch") is None:
        raise UserError("dalle-pytorch is not installed; in a clone, make peers installs it")
    stand_ins: dict[str, Any] = {name: types.ModuleType(name) for name in STAND_INS}
    stand_ins["omegaconf"].OmegaConf = object
    stand_ins["taming.models.vqgan"].VQModel = stand_ins["taming.models.vqgan"].GumbelVQ = torch.nn.Module
    stand_ins["pkg_resources"].get_distribution = importlib.metadata.distribution
    hidden = {name: sys.modules.pop(name) for name in STAND_INS if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("dalle_pytorch")
    finally:  # other code tests whether these modules can be imported
        for name in STAND_INS:
            del sys.modules[name]
        sys.modules.update(hidden)


class DallePytorch:
    """dalle-pytorch at its fastest settings: with its cache, all candidates at once.

    At equal width it has more weights per block: its feed-forward layer is gated and four times as wide.

    Args:
        shape: of the transformer.
        device: where to compute.

    Raises:
        UserError: dalle-pytorch is not installed.
    """

    name = "dalle-pytorch"

    def __init__(self, shape: Shape, device: str) -> None:
        package = import_dalle_pytorch()
        factor = 3  # its picture size only decides the token grid
        vae = package.DiscreteVAE(
            image_size=shape.side * 2**factor,
            num_layers=factor,
            num_tokens=shape.image_vocab,
            hidden_dim=8,
            codebook_dim=8,
        )
        self.hparams = {
            "dim": shape.n_embd, "num_text_tokens": shape.text_vocab, "text_seq_len": shape.text_length,
            "depth": shape.n_layer, "heads": shape.n_head, "dim_head": shape.n_embd // shape.n_head,
        }  # fmt: skip
        self.model = package.DALLE(vae=vae, **self.hparams).to(device)
        vae.decode = lambda ids: ids  # only sampling of ids is compared
        self.shape, self.device = shape, device

    @torch.no_grad()
    def sample(self, candidates: int, guided: bool) -> Tensor:
        """Sample image ids (candidates, h * w) for one caption."""
        # A new tensor for every call: its guidance overwrites the prompt.
        text = torch.full((candidates, self.shape.text_length), 3, device=self.device)
        threshold = 1 - TOP_K / self.model.total_tokens
        # At exactly 1 it does not use its cache and computes the whole stream at every step; near 1 it does.
        scale = GUIDANCE if guided else 1.0 + 1e-6
        return self.model.generate_images(text, filter_thres=threshold, cond_scale=scale, use_cache=True)

    def loss(self, text_ids: Tensor, image_ids: Tensor) -> Tensor:
        """Mean nats of text ids (B, L) and image ids (B, h * w), those of image ids weighted by 7."""
        return self.model(text_ids, image_ids, return_loss=True)


class Llama:
    """A Llama-style model of the transformers library with a static cache, in bf16.

    Args:
        shape: of the transformer; its feed-forward layer has about as many weights as this package's.
        device: where to compute.

    Raises:
        UserError: transformers is not installed.
    """

    name = "transformers"

    def __init__(self, shape: Shape, device: str) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise need_extra("transformers", "bench")
        import transformers

        transformers.logging.set_verbosity_error()
        self.stream = shape.stream()
        config = transformers.LlamaConfig(
            vocab_size=self.stream.vocab_size,
            hidden_size=shape.n_embd,
            num_hidden_layers=shape.n_layer,
            num_attention_heads=shape.n_head,
            num_key_value_heads=shape.n_head,
            intermediate_size=(8 * shape.n_embd // 3 + 63) // 64 * 64,
            max_position_embeddings=shape.length,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=None,
            tie_word_embeddings=False,
        )
        model: Any = transformers.LlamaForCausalLM(config)
        self.model = model.to(device)
        self.shape, self.device = shape, device

    @torch.no_grad()
    def sample(self, candidates: int, guided: bool) -> Tensor:
        """Sample image ids (candidates, h * w) for one caption."""
        if self.model.dtype != torch.bfloat16:
            self.model.bfloat16().eval()
        prefix = self.stream.prefix([[3] * self.shape.text_length]).to(self.device).expand(candidates, -1)
        null = self.stream.prefix([[]]).to(self.device).expand(candidates, -1)
        guidance = {"guidance_scale": GUIDANCE, "negative_prompt_ids": null} if guided else {}
        ids = self.model.generate(
            prefix,
            attention_mask=torch.ones_like(prefix),
            max_new_tokens=self.shape.image_length,
            min_new_tokens=self.shape.image_length,
            do_sample=True,
            top_k=TOP_K,
            cache_implementation="static",
            suppress_tokens=list(range(self.stream.image_offset)),
            **guidance,
        )
        return ids[:, prefix.shape[1] :] - self.stream.image_offset

    def loss(self, text_ids: Tensor, image_ids: Tensor) -> Tensor:
        """Mean nats of text ids (B, L) and image ids (B, h * w), those of image ids weighted by 7."""
        length = self.shape.text_length
        bos = torch.ones(len(text_ids), 1, dtype=torch.int64, device=self.device)
        ids = torch.cat([bos, text_ids, image_ids + self.stream.image_offset], 1)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            logits = self.model(ids[:, :-1]).logits
        nats = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        return (nats[:, :length].mean() + 7 * nats[:, length:].mean()) / 8
