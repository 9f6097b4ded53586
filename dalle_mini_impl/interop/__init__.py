"""Models of other projects: read their files, convert their tensors, and write DALLE-pytorch's.

`text/` holds text tokenizers, `image/` image tokenizers, `whole/` transformers together with their tokenizers. Each
format has one module; the docstring of each folder says which files a new format touches. `read_weights` and
`safe_pickle` read files, `check_tensors` compares them with what a network needs, and `result` holds the classes that
importing returns. In names, `foreign` means "of the other project".
"""
