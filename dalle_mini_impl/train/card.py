"""The `about` section of a checkpoint, as far as the training run knows it."""

from dataclasses import replace

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.data.token_cache import TokenCache


def describe_run(config: TransformerRun, cache: TokenCache) -> AboutConfig:
    """What the config says of the model; where it leaves them out, languages and data are those of the cache."""
    found = {caption.language for entry in cache.entries for caption in entry.captions} - {""}
    shares = {code: config.language_weights.get(code, 1.0) for code in sorted(found)}
    languages = tuple(sorted((code for code in shares if shares[code] > 0), key=lambda code: -shares[code]))
    data = (f"{cache.header.source}: {len(cache)} pictures",) if cache.header.source else ()
    about = config.about
    return replace(about, languages=about.languages or languages, data=about.data or data)
