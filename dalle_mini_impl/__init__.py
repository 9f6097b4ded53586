"""Train, sample and judge your own DALL-E 1.

Example:
    from dalle_mini_impl import DalleMini

    dalle = DalleMini.from_pretrained("emoji")
    result = dalle.generate("a red heart", candidates=32, keep=8, seed=0)
    result.grid().save("grid.png")
"""

import importlib
from typing import TYPE_CHECKING, Any

from dalle_mini_impl.util.threads import limit_spinning

limit_spinning()
__version__ = "0.2.0"

# Each public name is imported on its first use, so that `import dalle_mini_impl` and `dalle --help` do not load torch.
_MODULES = {
    "Candidate": "pipeline.results",
    "DalleMini": "pipeline.dalle_mini",
    "DiffusionDecoder": "unclip.diffusion_decoder",
    "ImageIndex": "search.index",
    "ImageTokenizer": "model.image_tokenizer",
    "PaintSettings": "painting.painter",
    "Painter": "painting.painter",
    "Preview": "pipeline.results",
    "Prior": "unclip.prior",
    "RankedCaption": "pipeline.captions",
    "Result": "pipeline.results",
    "Scorer": "scorer.scorer",
    "Target": "painting.targets",
    "TextTokenizer": "text.sentencepiece_tokenizer",
    "UserError": "util.errors",
    "component_views": "pipeline.manipulations",
    "edit": "pipeline.manipulations",
    "mix": "pipeline.manipulations",
    "vary": "pipeline.manipulations",
}
__all__ = [
    "Candidate",
    "DalleMini",
    "DiffusionDecoder",
    "ImageIndex",
    "ImageTokenizer",
    "PaintSettings",
    "Painter",
    "Preview",
    "Prior",
    "RankedCaption",
    "Result",
    "Scorer",
    "Target",
    "TextTokenizer",
    "UserError",
    "component_views",
    "edit",
    "mix",
    "vary",
]

if TYPE_CHECKING:
    from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
    from dalle_mini_impl.painting.painter import Painter, PaintSettings
    from dalle_mini_impl.painting.targets import Target
    from dalle_mini_impl.pipeline.captions import RankedCaption
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.pipeline.manipulations import component_views, edit, mix, vary
    from dalle_mini_impl.pipeline.results import Candidate, Preview, Result
    from dalle_mini_impl.scorer.scorer import Scorer
    from dalle_mini_impl.search.index import ImageIndex
    from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
    from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder
    from dalle_mini_impl.unclip.prior import Prior
    from dalle_mini_impl.util.errors import UserError


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List public names before they are imported, too."""
    return sorted([*globals(), *__all__])
