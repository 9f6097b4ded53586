"""Vectors <-> image ids: the quantizers that are trained here, and the same without training code."""
