"""Image tokenizers of other projects."""
