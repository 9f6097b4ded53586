"""Image ids <-> codebook vectors: what is trained here, and the same without training code."""
