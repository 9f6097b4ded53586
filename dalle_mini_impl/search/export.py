"""Export of an index in the folder layout of clip-retrieval, which its tools and servers read."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini_impl.search.index import ImageIndex
from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.files import check_file_output, replace_file

CHUNK = 4096
"""Vectors copied at a time, which bounds memory."""


WRITER = {b"writer": b"dalle_mini_impl"}
"""Metadata of our Parquet files, by which an export of this program is known."""
MATRIX = "img_emb/img_emb_0.npy"
TABLE = "metadata/metadata_0.parquet"
FAISS_INDEX = "image.index"


def check_export(folder: str | Path, *, with_faiss: bool) -> None:
    """Check before work begins that an export can be written.

    Args:
        folder: as for the exports.
        with_faiss: whether a faiss index will be written too.

    Raises:
        UserError: a library is missing, the folder cannot be written to, or holds vectors of another program.
    """
    pyarrow, parquet = _import_pyarrow()
    if with_faiss:
        _import_faiss()
    folder = Path(folder)
    for name in (MATRIX, TABLE, FAISS_INDEX):
        check_file_output(folder / name)
    existing = [name for name in (MATRIX, TABLE, FAISS_INDEX) if (folder / name).exists()]
    if existing:
        try:
            metadata = parquet.read_schema(folder / TABLE).metadata or {}
        except (OSError, pyarrow.ArrowException):
            metadata = {}
        if not WRITER.items() <= metadata.items():
            raise UserError(
                f"expected {folder} to hold no vectors, or those of dalle index, got {existing[0]} of another program; "
                f"name another folder, so that nothing of yours is replaced"
            )


def export_clip_retrieval(index: ImageIndex, folder: str | Path) -> list[Path]:
    """Write `img_emb/img_emb_0.npy` (n, D) fp16 and `metadata/metadata_0.parquet` with the column `image_path`.

    Rows of both files correspond. Files of equal content have a row each. A faiss index of an earlier export is
    removed, as its rows would be others.

    Args:
        index: the index.
        folder: made if missing.

    Returns:
        Both paths.

    Raises:
        UserError: the folder cannot be written to or holds vectors of another program, the index is damaged, or the
            `search` extra is not installed.
    """
    check_export(folder, with_faiss=False)
    pyarrow, parquet = _import_pyarrow()
    pictures = index.pictures()
    matrix = Path(folder) / MATRIX
    table = Path(folder) / TABLE
    # Both get their names at the end, one right after the other.
    with replace_file(matrix) as new_matrix, replace_file(table) as new_table:
        shape = (len(pictures), index.vectors.shape[1])
        with new_matrix.open("wb") as file:
            header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(pictures), CHUNK):
                rows = [row for _, row in pictures[start : start + CHUNK]]
                file.write(index.vectors[rows].numpy().tobytes())
        # File names may hold bytes that are not UTF-8, which parquet cannot store.
        paths = [os.fsencode(str(path)).decode("utf-8", "backslashreplace") for path, _ in pictures]
        columns = pyarrow.table({"image_path": paths}).replace_schema_metadata(WRITER)
        parquet.write_table(columns, new_table)
        (Path(folder) / FAISS_INDEX).unlink(missing_ok=True)
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
    faiss = _import_faiss()
    rows = [row for _, row in index.pictures()]
    target = faiss.IndexFlatIP(index.vectors.shape[1])
    for start in range(0, len(rows), CHUNK):
        target.add(index.vectors[rows[start : start + CHUNK]].float().numpy())
    path = Path(folder) / FAISS_INDEX
    with replace_file(path) as temporary:
        faiss.write_index(target, str(temporary))
    return path


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise need_extra("pyarrow", "search") from error
    return pyarrow, parquet


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise need_extra("faiss-cpu", "faiss") from error
    return faiss
