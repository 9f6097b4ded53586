"""What tells one scorer from another, recorded by indexes and by pictures that it ranked."""

import hashlib
from dataclasses import fields

from dalle_mini_impl.checkpoint.parts import weights_identity
from dalle_mini_impl.scorer.scorer import Scorer

HASHED_APART = ("model", "text_tokenizer")
"""Fields of `Scorer` whose content is hashed by other means."""
WITHOUT_INFLUENCE = ("device", "chunk_size", "name")
"""Fields of `Scorer` that change no embedding."""


def scorer_identity(scorer: Scorer) -> str:
    """Hash of everything that an embedding depends on: weights, text ids, and how pictures and texts are prepared.

    It includes the names of the fields of `Scorer` and `Preprocess`: renaming one makes existing indexes unusable.
    """
    weights = weights_identity({name: value.cpu() for name, value in scorer.model.state_dict().items()})
    text_tokenizer = getattr(scorer.text_tokenizer, "identity", "")
    settings = {
        field.name: getattr(scorer, field.name)
        for field in fields(scorer)
        if field.name not in (*HASHED_APART, *WITHOUT_INFLUENCE)
    }
    return hashlib.sha256(f"{weights} {text_tokenizer} {settings}".encode()).hexdigest()[:16]
