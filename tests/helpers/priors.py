"""Small priors with random weights, and transformers that take what they draw."""

from pathlib import Path

import torch

from dalle_mini_impl.checkpoint.parts import read_part, save_part
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE
from dalle_mini_impl.config.model import PriorConfig
from dalle_mini_impl.config.sampling import PriorSamplingConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.model.build import build_prior
from dalle_mini_impl.model.prior import ARPrior
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.unclip.prior import SPACE
from helpers.models import CAPTIONS, TRANSFORMER, make_transformer, randomise


def add_prior(folder: Path, kind: str, **sampling: object) -> Path:
    """Give a checkpoint with a scorer a prior of a kind with random weights."""
    scorer, tokenizer = Scorer.from_pretrained(folder), TextTokenizer(folder / TEXT_TOKENIZER_FILE)
    config = PriorConfig(kind=kind, n_layer=1, n_head=2, n_embd=12, text_length=9, components=5, buckets=16)
    shape = {"text_vocab": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}
    network = randomise(build_prior(config, embed_dim=scorer.model.embed_dim, **shape), 11)
    if isinstance(network, ARPrior):
        embeds = scorer.embed_texts(CAPTIONS)
        network.fit(embeds, embeds.flip(0))
    settings = {"prior": to_dict(config), "sampling": to_dict(PriorSamplingConfig(**{"steps": 5, **sampling}))}
    identities = {"text_tokenizer": tokenizer.identity, SPACE: scorer_identity(scorer)}
    identities["scorer"] = read_part(folder, "scorer", weights=False).identity
    save_part(folder, "prior", network, settings, identities, torch.float32)
    return folder


def take_embeddings(folder: Path) -> Path:
    """Give a checkpoint a transformer that takes embeddings of its scorer, with random weights."""
    width = Scorer.from_pretrained(folder).model.embed_dim
    trained_with = read_part(folder, "transformer", weights=False).trained_with
    (folder / "transformer.safetensors").unlink()
    transformer, stream = make_transformer(embed_dim=width)
    with torch.no_grad():
        transformer.image_prefix.project.weight *= 3  # so that pictures depend on it much
    config = {"stream": to_dict(stream.config), "transformer": to_dict(TRANSFORMER)}
    scorer = read_part(folder, "scorer", weights=False).identity
    save_part(folder, "transformer", transformer, config, {"scorer": scorer, **trained_with})
    return folder
