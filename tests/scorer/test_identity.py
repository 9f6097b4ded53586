"""What tells one scorer from another."""

from dataclasses import replace

from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer


def test_scorer_identities_depend_on_what_embeddings_depend_on(tiny_model, other_scorer):
    scorer = Scorer.from_pretrained(tiny_model)
    assert scorer_identity(scorer) == scorer_identity(replace(scorer, chunk_size=3, name="another"))
    assert scorer_identity(scorer) != scorer_identity(replace(scorer, text_length=7))
    assert scorer_identity(scorer) != scorer_identity(Scorer.from_pretrained(other_scorer))


def test_scorers_have_the_name_they_were_loaded_by(tiny_model):
    assert Scorer.from_pretrained(tiny_model).name == str(tiny_model)
