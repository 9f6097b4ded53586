"""Train, sample and judge your own DALL-E 1.

from dalle_mini_impl import DalleMini

dalle = DalleMini.from_pretrained("emoji")
result = dalle.generate("a red heart", candidates=32, keep=8, seed=0)
result.grid().save("grid.png")
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use, so that `dalle --help` and `import dalle_mini_impl` do not wait for torch.
_WHERE = {
    "Candidate": "results",
    "DalleMini": "pipeline",
    "ImageIndex": "search",
    "ImageTokenizer": "image_tokenizer",
    "PaintSettings": "guided",
    "Painter": "guided",
    "Preview": "results",
    "RankedCaption": "captions",
    "Result": "results",
    "Scorer": "scorer",
    "Target": "guided",
    "TextTokenizer": "text_tokenizer",
    "UserError": "errors",
}
__all__ = [
    "Candidate",
    "DalleMini",
    "ImageIndex",
    "ImageTokenizer",
    "PaintSettings",
    "Painter",
    "Preview",
    "RankedCaption",
    "Result",
    "Scorer",
    "Target",
    "TextTokenizer",
    "UserError",
]

if TYPE_CHECKING:
    from dalle_mini_impl.captions import RankedCaption
    from dalle_mini_impl.errors import UserError
    from dalle_mini_impl.guided import Painter, PaintSettings, Target
    from dalle_mini_impl.image_tokenizer import ImageTokenizer
    from dalle_mini_impl.pipeline import DalleMini
    from dalle_mini_impl.results import Candidate, Preview, Result
    from dalle_mini_impl.scorer import Scorer
    from dalle_mini_impl.search import ImageIndex
    from dalle_mini_impl.text_tokenizer import TextTokenizer


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
