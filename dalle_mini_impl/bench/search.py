"""Rows of image search: exact nearest neighbours, beside faiss's exact index."""

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

DIM = 512
"""Width of CLIP ViT-B embeddings."""
HITS = 10
CHUNK = 16_384
"""Vectors written or added at a time, which bounds memory."""


class Faiss:
    """An exact inner-product index of faiss (Johnson et al. 2017), which holds vectors in fp32.

    Args:
        vectors: (n, DIM) of any floating-point type.
    """

    name = "faiss"

    def __init__(self, vectors: Tensor) -> None:
        import faiss

        self.index = faiss.IndexFlatIP(vectors.shape[1])
        for part in vectors.split(CHUNK):
            self.index.add(part.float().numpy())

    def search(self, query: Tensor) -> list[int]:
        """Rows of the `HITS` highest inner products with a query (DIM,)."""
        return self.index.search(query[None].numpy(), HITS)[1][0].tolist()


def search_rows(machine: MachineSpeed, peer: type[Faiss] | None, repeats: int, count: int) -> Iterator[BenchRow]:
    """Time searching for one query among random unit vectors in a memory-mapped file, 1 KB each, on the CPU.

    The row's note says by how much the process's memory grows: by pages of the file, which the system may drop at any
    time, and by the peer's index.

    Args:
        machine: its limits; its device is not used.
        peer: measured beside it; None for none.
        repeats: rounds of which the median counts.
        count: number of vectors; a million takes 1 GB on disk, and 3 GB of memory with the peer.

    Raises:
        UserError: this package and the peer find different vectors.
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
            own_rows = nearest(vectors[0], query, HITS)[1].tolist()
            peer_rows = indexes[0].search(query)
            if own_rows != peer_rows:
                raise UserError(
                    f"expected equal rows, got {own_rows} from this package and {peer_rows} from {peer.name}; "
                    f"one of them is wrong: report this, and measure with --peer none"
                )
        seconds = median_seconds(runs, "cpu", repeats)
    name = peer.name if peer else ""
    limit_share = machine.seconds(2 * DIM * count, 2 * DIM * count, "fp32") / seconds["ours"]
    note = f"{memory['ours'] / 1e6:.0f} MB" + (f", theirs {memory[name] / 1e6:.0f} MB" if peer else "")
    details = {"dim": DIM, "hits": HITS, "bytes": memory}
    yield BenchRow(
        f"search/{count}", seconds["ours"], name, seconds.get(name, torch.nan), limit_share, note, details=details
    )


def write_vectors(file: Path, count: int) -> None:
    """Write random unit vectors (count, DIM) in half precision."""
    generator = torch.Generator().manual_seed(0)
    with file.open("wb") as target:
        for start in range(0, count, CHUNK):
            rows = torch.randn(min(CHUNK, count - start), DIM, generator=generator)
            target.write(F.normalize(rows, dim=1).half().numpy().tobytes())


def _open_and_search(file: Path, count: int, query: Tensor) -> Tensor:
    """Map the file, search it once, which reads all of its pages, and return the vectors."""
    vectors = torch.from_file(str(file), shared=False, size=count * DIM, dtype=torch.float16).view(count, DIM)
    nearest(vectors, query, HITS)
    return vectors
