"""How the decoder of an image tokenizer is trained alone, after everything else."""

from dataclasses import dataclass

from dalle_mini_impl.config.ranges import Count, Share


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Training only the decoder of the image tokenizer in `start_from`, on ids that are not those of the picture.

    Encoder and codebook stay, and so do the ids of every picture: token caches and transformers stay valid.
    """

    decoder_only: bool = False
    """Train the decoder alone."""
    replaced_share: Share = 0.0
    """Largest share of a picture's ids that are replaced by ids with near codebook vectors (Qiu et al. 2025, RobusTok);
    each picture has a random share from 0 to this one."""
    neighbours: Count = 64
    """How many of the nearest codebook vectors such an id is chosen from."""
    drawn_share: Share = 0.0
    """Largest share of a picture's ids that a transformer draws again, each given the caption and the picture's own ids
    before it; each picture has a random share from 0 to this one."""
    transformer: str = ""
    """Checkpoint with that transformer: a shipped name, a folder or hf:USER/REPO; if empty, that of `start_from`."""
