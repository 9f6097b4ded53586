"""Prompt -> ranked pictures: the rooms below, put together."""
