"""Text tokenizers of other projects."""
