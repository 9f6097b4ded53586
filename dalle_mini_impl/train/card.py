"""The description of a transformer that its training writes into the checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.data.token_cache import TokenCache


def describe_run(config: TransformerRun, caches: Sequence[TokenCache], start_data: tuple[str, ...] = ()) -> AboutConfig:
    """The config's description; languages and data that it leaves out are taken from the token caches.

    Languages are those of the captions with a positive weight, the most frequently sampled first.

    Args:
        config: settings of the run.
        caches: image ids and captions of the training pictures.
        start_data: data that the checkpoint in `start_from` was trained on, which the result names as well.
    """
    found = {language for cache in caches for language in cache.entries.languages}
    weights = {code: config.language_weights.get(code, 1.0) for code in sorted(found)}
    languages = tuple(sorted((code for code in weights if weights[code] > 0), key=lambda code: -weights[code]))
    data = tuple(f"{cache.header.source}: {len(cache)} pictures" for cache in caches if cache.header.source)
    if config.scenes.store:
        data += (f"scenes composed of {Path(config.scenes.store).name}",)
    about = config.about
    return replace(about, languages=about.languages or languages, data=about.data or data + start_data)
