"""Quantizers of the image tokenizer: vectors <-> image ids.

`learned` has the interface, `build_quantizer` and the quantizers that wrap vector-quantize-pytorch; `lfq` and `gumbel`
are two more. `frozen` has the wrapped ones without training code, for trained weights.
"""
