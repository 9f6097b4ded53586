"""VQGAN+CLIP: pictures painted in the latent space of an image tokenizer, towards what scorers are told."""

from dalle_mini_impl.guided.cuts import Cuts
from dalle_mini_impl.guided.painter import Painter, Painting, PaintSettings, Step, paint
from dalle_mini_impl.guided.targets import Target, parse_noise, parse_targets

__all__ = [
    "Cuts", "PaintSettings", "Painter", "Painting", "Step", "Target", "paint", "parse_noise", "parse_targets",
]  # fmt: skip
