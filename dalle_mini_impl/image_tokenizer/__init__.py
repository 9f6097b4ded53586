"""Pixels <-> image ids."""

from dalle_mini_impl.image_tokenizer.tokenizer import ImageTokenizer, Reconstruction

__all__ = ["ImageTokenizer", "Reconstruction"]
