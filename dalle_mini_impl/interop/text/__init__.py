"""Text tokenizers of other projects -> `text_tokenizer.json`, one module per format.

To add a format: write a module here with `convert(path, lowercase) -> TokenizerJson`, add it to `CONVERTERS` (and,
where its first lines identify it, to `guess_kind`) in `import_text_tokenizer.py`, and add its name to `KINDS` in
`cli/import_/text_tokenizer.py`.
"""
