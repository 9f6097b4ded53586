"""Small random image tokenizers in the layouts of other projects, and comparisons with what was imported from them."""

from collections.abc import Callable

import torch
from torch import Tensor

from dalle_mini_impl.interop.image import taming_vqgan
from dalle_mini_impl.interop.result import ImportedImageTokenizer, ImportedTransformer
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.logit_laplace import mean_pixels
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from helpers.foreign_dalle_pytorch_vae import discrete_vae_shapes
from helpers.foreign_openai_dvae import dvae_shapes
from helpers.foreign_tensors import Tensors, random_tensors
from helpers.foreign_vqgan import llamagen_names, vqgan_shapes

VQGAN_SHAPES = vqgan_shapes(32, (1, 1), (1,), z_channels=11, embed_dim=7, n_ids=61, blocks=1)
VQGAN = random_tensors(VQGAN_SHAPES)
LLAMAGEN = {llamagen_names(VQGAN_SHAPES, 2)[name]: value for name, value in VQGAN.items()}
DVAE_ENCODER, DVAE_DECODER = (random_tensors(shapes) for shapes in dvae_shapes(hidden=8, init=5, n_ids=61))
DISCRETE_VAE = random_tensors(discrete_vae_shapes(3, 1, hidden=11, embed_dim=7, n_ids=61), gain=1.6)


def altered(tensors: Tensors, **changes: Tensor | None) -> Tensors:
    """A copy with some tensors replaced, or removed where the value is None; `__` in a keyword is a dot in the name."""
    new = {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in new.items() if value is not None}


def has_weights(
    imported: ImportedImageTokenizer,
    tensors: Tensors,
    foreign_name: Callable[[str], str] = taming_vqgan.foreign_name,
) -> bool:
    """Whether all tensors, and no others, are in an imported image tokenizer."""
    state = imported.tokenizer.state_dict()
    assert len(state) == len(tensors)
    return all(torch.equal(value, tensors[foreign_name(name)]) for name, value in state.items())


def random_pixels(height: int, width: int, seed: int = 0, count: int = 2) -> Tensor:
    """Pictures (count, 3, height, width) of noise in [-1, 1]."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_matches_reference(tokenizer: ImageTokenizer, pixels: Tensor, image_ids: Tensor, decoded: Tensor) -> None:
    """The same ids as the reference's, of which there are several, and pictures within 1e-5 of the reference's."""
    ids = tokenizer.encode(pixels)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, image_ids)
    assert len(ids.unique()) > 5
    assert decoded.std() > 0.05
    with torch.inference_mode():
        vectors = tokenizer.quantizer.lookup(ids.flatten(1)).unflatten(1, ids.shape[1:])
        unclamped = tokenizer.decoder(vectors.movedim(-1, 1))
        if tokenizer.config.likelihood == "laplace":  # the reference is clamped already
            unclamped = mean_pixels(unclamped).clamp(-1, 1)
        torch.testing.assert_close(unclamped, decoded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokenizer.decode(ids), decoded.clamp(-1, 1), atol=1e-5, rtol=0)


def build_imported(imported: ImportedTransformer) -> tuple[Transformer, Stream]:
    """The module of an imported transformer, with all its tensors, and its stream."""
    transformer = build_transformer(imported.config, imported.stream).eval()
    transformer.load_state_dict(imported.tensors)
    return transformer, Stream(imported.stream)
