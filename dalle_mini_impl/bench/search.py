"""Rows of image search: the nearest vectors, ours beside faiss's exact index."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.bench.machine import MachineSpeed
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.timing import median_seconds, peak_memory
from dalle_mini_impl.search.nearest import nearest
from dalle_mini_impl.util.errors import UserError

DIM, HITS, CHUNK = 512, 10, 16_384


class Faiss:
    """An exact faiss index of vectors, in fp32 as it keeps them."""

    name = "faiss"

    def __init__(self, vectors: Tensor) -> None:
        import faiss

        self.index = faiss.IndexFlatIP(vectors.shape[1])
        for part in vectors.split(CHUNK):
            self.index.add(part.float().numpy())

    def search(self, query: Tensor) -> list[int]:
        """Rows of the highest products with a query (D,)."""
        return self.index.search(query[None].numpy(), HITS)[1][0].tolist()


def search_rows(machine: MachineSpeed, peer: type[Faiss] | None, repeats: int, count: int) -> Iterator[BenchRow]:
    """Look for one query among random vectors of length 1 in a file of 1 KB each.

    The row's note says by how much the process grows: by the pages of the file for ours, which the system may drop at
    any time, by the index for the peer.

    Args:
        machine: searched on its processor; the device plays no part.
        peer: measured beside it; None for nothing.
        repeats: rounds of which the median counts.
        count: number of vectors; a million takes 1 GB on the disk, and 3 GB of memory with the peer.

    Raises:
        UserError: ours and the peer find different vectors.
    """
    query = F.normalize(torch.randn(DIM, generator=torch.Generator().manual_seed(1)), dim=0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.f16"
        write_vectors(file, count)
        vectors: list[Tensor] = []
        memory = {"ours": peak_memory(lambda: vectors.append(_open_and_search(file, count, query)), "cpu")}
        runs: dict[str, Callable[[], Any]] = {"ours": partial(nearest, vectors[0], query, HITS)}
        if peer:
            indexes: list[Faiss] = []
            memory[peer.name] = peak_memory(lambda: indexes.append(peer(vectors[0])), "cpu")
            runs[peer.name] = partial(indexes[0].search, query)
            if (found := nearest(vectors[0], query, HITS)[1].tolist()) != (theirs := indexes[0].search(query)):
                raise UserError(f"ours found {found}, {peer.name} {theirs}; one of them is wrong")
        seconds = median_seconds(runs, "cpu", repeats)
    name = peer.name if peer else ""
    share = machine.seconds(2 * DIM * count, 2 * DIM * count, "fp32") / seconds["ours"]
    note = f"{memory['ours'] / 1e6:.0f} MB" + (f", theirs {memory[name] / 1e6:.0f} MB" if peer else "")
    details = {"dim": DIM, "hits": HITS, "bytes": memory}
    yield BenchRow(f"search/{count}", seconds["ours"], name, seconds.get(name, torch.nan), share, note, details=details)


def write_vectors(file: Path, count: int) -> None:
    """Write random vectors of length 1 in half precision, a few at a time."""
    generator = torch.Generator().manual_seed(0)
    with file.open("wb") as target:
        for start in range(0, count, CHUNK):
            rows = torch.randn(min(CHUNK, count - start), DIM, generator=generator)
            target.write(F.normalize(rows, dim=1).half().numpy().tobytes())


def _open_and_search(file: Path, count: int, query: Tensor) -> Tensor:
    vectors = torch.from_file(str(file), shared=False, size=count * DIM, dtype=torch.float16).view(count, DIM)
    nearest(vectors, query, HITS)
    return vectors
