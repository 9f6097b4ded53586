"""Captioned scenes composed of art: synthetic, right by construction, made anew from (seed, step, row)."""
