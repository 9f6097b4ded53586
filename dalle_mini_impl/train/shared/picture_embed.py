"""The scorer whose embeddings of pictures say what the transformer shall draw."""

from collections.abc import Sequence
from pathlib import Path

from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.data.token_cache import TokenCache
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError


def load_scorer(model_dir: str | Path, device: str) -> tuple[Scorer, str]:
    """The scorer of a checkpoint folder, and its identity.

    Raises:
        UserError: there is none, or it is damaged.
    """
    identity = read_part(Path(model_dir), "scorer", weights=False).identity
    return Scorer.from_pretrained(model_dir, device), identity


def open_scorer(
    config: TransformerRun, caches: Sequence[TokenCache], device: str
) -> tuple[Scorer | None, dict[str, str]]:
    """The scorer of a run that trains with image embeddings.

    Args:
        config: settings of the stage.
        caches: of all pictures, those to train on first.
        device: where it embeds scenes.

    Returns:
        The scorer, and its identity as `scorer`; None and nothing for a run without image embeddings.

    Raises:
        UserError: there is no scorer, a cache has no embeddings by it, or there are no other pictures of the same
            concept to take embeddings of.
    """
    if not config.image_embed.positions:
        return None, {}
    scorer, identity = load_scorer(config.run.model_dir, device)
    for cache in caches:
        cache.check_embeddings(identity)
    if config.image_embed.other_share and all(len(caches[0].same_concept(row)) == 1 for row in range(len(caches[0]))):
        raise UserError(
            f"expected pictures with the same detail concept in {config.cache} for image_embed.other_share, got none; "
            f"set it to 0"
        )
    return scorer, {"scorer": identity}
