"""Export of an index in the folder layout of clip-retrieval, which its tools and servers read."""

import os
from pathlib import Path

import numpy as np

from dalle_mini_impl.search.index import ImageIndex
from dalle_mini_impl.util.errors import need_extra
from dalle_mini_impl.util.files import replace_file

CHUNK = 4096
"""Vectors copied at a time, which bounds memory."""


def export_clip_retrieval(index: ImageIndex, folder: str | Path) -> list[Path]:
    """Write `img_emb/img_emb_0.npy` (n, D) fp16 and `metadata/metadata_0.parquet` with the column `image_path`.

    Rows of both files correspond. Files of equal content have a row each.

    Args:
        index: the index.
        folder: made if missing.

    Returns:
        Both paths.

    Raises:
        UserError: the folder cannot be written to, or the `search` extra is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise need_extra("pyarrow", "search") from error
    pictures = index.pictures()
    matrix = Path(folder) / "img_emb/img_emb_0.npy"
    table = Path(folder) / "metadata/metadata_0.parquet"
    with replace_file(matrix) as temporary:
        shape = (len(pictures), index.vectors.shape[1])
        target = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, len(pictures), CHUNK):
            rows = [row for _, row in pictures[start : start + CHUNK]]
            target[start : start + CHUNK] = index.vectors[rows].numpy()
        target.flush()
    with replace_file(table) as temporary:
        # File names may hold bytes that are not UTF-8, which parquet cannot store.
        paths = [os.fsencode(path).decode("utf-8", "backslashreplace") for path, _ in pictures]
        parquet.write_table(pyarrow.table({"image_path": paths}), temporary)
    return [matrix, table]


def export_faiss(index: ImageIndex, folder: str | Path) -> Path:
    """Write `image.index`, an exact faiss index of the same rows, which clip-retrieval's server reads.

    Args:
        index: the index.
        folder: that of `export_clip_retrieval`.

    Returns:
        Its path.

    Raises:
        UserError: the folder cannot be written to, or the `faiss` extra is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise need_extra("faiss-cpu", "faiss") from error
    rows = [row for _, row in index.pictures()]
    target = faiss.IndexFlatIP(index.vectors.shape[1])
    for start in range(0, len(rows), CHUNK):
        target.add(index.vectors[rows[start : start + CHUNK]].float().numpy())
    path = Path(folder) / "image.index"
    with replace_file(path) as temporary:
        faiss.write_index(target, str(temporary))
    return path
