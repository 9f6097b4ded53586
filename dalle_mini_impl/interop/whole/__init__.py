"""Whole models of other projects -> the parts of a checkpoint, one module per project.

To add a project: write a module here with `load(path, …) -> ImportedTransformer` and `PROJECT`, a `ProjectInfo`; add a
module of the same name with the command to `cli/import_/`, and a line to `SECTIONS` in its `__init__.py`. Tokenizers
come from the modules of `text/` and `image/`.
"""
