"""What a trained image tokenizer or a whole model is worth, in numbers with their uncertainty."""
