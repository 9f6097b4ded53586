"""Decoding on a CPU in compiled code: C sources, their compilation, weights, attention masks and cache."""
