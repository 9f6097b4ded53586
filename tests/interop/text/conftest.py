"""Fixtures of the tests of imported text tokenizers."""

import importlib
import importlib.util
import sys
import types

import pytest

from dalle_mini_impl.bench.peers import import_dalle_pytorch


@pytest.fixture(scope="session")
def dalle_pytorch_tokenizer():
    """The module `dalle_pytorch.tokenizer`; youtokentome, which cannot be built any more, is replaced by nothing."""
    for name in ("ftfy", "regex", "transformers"):
        pytest.importorskip(name)
    if importlib.util.find_spec("dalle_pytorch") is None:
        pytest.skip("dalle-pytorch is not installed")
    import_dalle_pytorch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "youtokentome", types.ModuleType("youtokentome"))
        return importlib.import_module("dalle_pytorch.tokenizer")
