"""What a training knows about the model it makes."""

from dataclasses import replace

from dalle_mini_impl.config import AboutConfig
from dalle_mini_impl.data.token_cache import TokenCache
from dalle_mini_impl.train.runs import TransformerRun


def tell(config: TransformerRun, cache: TokenCache) -> AboutConfig:
    """What the config says of the model, and where it does not, the languages and data of the training pictures."""
    about, found = config.about, {caption.language for entry in cache.entries for caption in entry.captions}
    drawn = {code: config.languages.get(code, 1.0) for code in sorted(found - {""})}
    languages = tuple(sorted((code for code in drawn if drawn[code] > 0), key=lambda code: -drawn[code]))
    data = f"{cache.header.source or 'a set without a name'}: {len(cache)} pictures"
    return replace(about, languages=about.languages or languages, data=about.data or (data,))
