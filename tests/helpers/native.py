"""Fixtures: the compiled functions for several kinds of CPU, and the number of threads."""

import platform

import pytest
import torch

from dalle_mini_impl.sampling.native import library

MACHINES = ["native"]
if platform.machine() == "x86_64" and library.load() is not None and library.load().lanes() == 16:
    MACHINES += ["x86-64-v4", "x86-64-v3"]  # a CPU without bf16 products, and one with vectors of half the length


@pytest.fixture(scope="module", params=MACHINES)
def machine(request, tmp_path_factory):
    """The functions compiled for one kind of CPU; models packed during the test use them."""
    flags = [f"-march={request.param}" if flag == "-march=native" else flag for flag in library.FLAGS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(library, "FLAGS", flags)
        library.load.cache_clear()
        if library.load() is None:
            pytest.skip("there is no C compiler with OpenMP")
        yield library.load()
    library.load.cache_clear()


@pytest.fixture
def threads():
    """A function that sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
