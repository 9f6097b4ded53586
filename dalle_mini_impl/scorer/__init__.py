"""CLIP: pictures and texts in one embedding space, for ranking, zero-shot labels and search."""

from dalle_mini_impl.scorer.clip import CLIP, build_clip
from dalle_mini_impl.scorer.losses import at_chance, chance_level, contrastive_loss, gather_with_gradient
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.scorer.recall import recalls
from dalle_mini_impl.scorer.scorer import Scorer

__all__ = [
    "CLIP",
    "Preprocess",
    "Scorer",
    "at_chance",
    "build_clip",
    "chance_level",
    "contrastive_loss",
    "gather_with_gradient",
    "recalls",
]
