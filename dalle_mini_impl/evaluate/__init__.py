"""Measurements of image tokenizers, scorers and whole models.

Two kinds of network measure pictures, and they are kept apart: a *scorer* is a CLIP-like model that compares pictures
with texts; a *judge* turns pictures into features and was trained on none of the pictures it measures.

Reading order for the R-precision of generated pictures:
1. `judges`: pixels -> features.
2. `reference_pictures`: the real pictures that features are compared with.
3. `r_precision`: the rank of a picture's own concept among all concepts.
4. `generation`: which pictures are generated and measured.
5. `intervals`: fractions with their confidence intervals.
"""
