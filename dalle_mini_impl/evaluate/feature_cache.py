"""Judge features of all pictures of a store, kept between runs in a file beside the store.

The file is `STORE.JUDGE-SIZEpx.safetensors`. Its header holds the key, which names everything the features depend on,
and a checksum of the features. A file with another key or checksum is ignored and replaced.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dalle_mini_impl.checkpoint.parts import weights_identity
from dalle_mini_impl.data.encoded_pictures import PICTURE_INDEX
from dalle_mini_impl.data.entries import ENTRIES_FILE
from dalle_mini_impl.data.store_files import PIXELS_FILE
from dalle_mini_impl.util.files import file_digest, replace_file


def store_fingerprint(store: Path) -> str:
    """Hash of the pixels and descriptions of all pictures of a store.

    Pixels are read whole: about a second per gigabyte, against minutes for the features of as many pictures. The index
    of encoded pictures has their checksums.
    """
    pixels = store / PIXELS_FILE
    return file_digest(store / ENTRIES_FILE, pixels if pixels.is_file() else store / PICTURE_INDEX)


def cache_path(store: Path, judge: str, size: tuple[int, int]) -> Path:
    """The file of one judge's features at one picture size.

    Args:
        store: folder of the store.
        judge: name of the judge.
        size: height and width in pixels of the pictures given to the judge.
    """
    store = store.resolve()
    pixels = str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
    return store.with_name(f"{store.name}.{judge}-{pixels}px.safetensors")


def cache_key(judge_identity: str, fingerprint: str, size: tuple[int, int]) -> str:
    """Text that is equal exactly where the features are: of the same judge, pictures and picture size."""
    pixels = size[0] if size[0] == size[1] else size
    return json.dumps({"judge": judge_identity, "store": fingerprint, "size": pixels})


def read_features(path: Path, key: str, count: int) -> Tensor | None:
    """Read features, or None where there is no file with this key, or it is damaged.

    Args:
        path: from `cache_path`.
        key: from `cache_key`.
        count: number of pictures.

    Returns:
        (count, D) as they were written.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("key") != key:
                return None
            features = file.get_tensor("features")
    except (SafetensorError, OSError):
        return None
    if len(features) != count or header.get("checksum") != weights_identity({"features": features}):
        return None
    return features


def write_features(path: Path, key: str, features: Tensor) -> None:
    """Write features (n, D), whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    features = features.detach().to("cpu", torch.float32).contiguous()
    header = {"key": key, "checksum": weights_identity({"features": features})}
    with replace_file(path) as temporary:
        save_file({"features": features}, temporary, metadata=header)
