"""Frozen dataclasses with every setting and its default, and reading them from YAML. Imports no torch."""
