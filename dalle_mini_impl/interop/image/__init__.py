"""Image tokenizers of other projects -> image tokenizers of this package, one module per format.

To add a format: write a module here with `load(path, image_size, …) -> ImportedImageTokenizer`, which reads the config
from the tensors' shapes and maps this package's tensor names to the project's; add a module of the same name with the
command to `cli/import_/`, and a line to `SECTIONS` in its `__init__.py`. If `model/foreign/` does not have the network
yet, add it there and to `model/image_tokenizer.py`.
"""
