"""VQGAN+CLIP: a latent of the image tokenizer, optimised until scorers find that it fits the prompts."""
