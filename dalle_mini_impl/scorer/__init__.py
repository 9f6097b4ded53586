"""CLIP-like scorers: pictures and texts in one space, for ranking, classification and search."""
