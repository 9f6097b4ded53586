"""Decoding on a CPU in compiled code: C sources, their compilation, weights, masks and cache."""
