"""Captions <-> text ids."""
