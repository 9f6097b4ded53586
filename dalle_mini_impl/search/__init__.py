"""Image search: an index of the pictures in a folder, searched by texts and pictures."""

from dalle_mini_impl.search.index import Hit, ImageIndex, Query, Term

__all__ = ["Hit", "ImageIndex", "Query", "Term"]
