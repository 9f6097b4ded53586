"""VQGAN+CLIP (Crowson et al. 2022, arXiv:2204.08583): gradient descent in an image tokenizer's latent space.

Reading order: `targets` (prompts -> embeddings to approach), `start` (the first latent), `cuts` (random augmented
crops), `gradients` (operations with special gradients, and the distance), `painter` (the loop). `frames` writes
intermediate pictures as a GIF or an MP4.
"""
