"""The format of checkpoint folders: one file per part, with its config and the identities of the parts it needs.

    config.yaml                 name, recommended sampling settings, languages, licence, data, measured quality
    text_tokenizer.model        SentencePiece; text_tokenizer.json if it was imported
    image_tokenizer.safetensors
    transformer.safetensors
    scorer.safetensors
    prior.safetensors           draws image embeddings of the scorer for captions; where there is one
    diffusion_decoder.safetensors   draws pictures of these; where there is one
    upsampler.safetensors       enlarges such pictures; where there is one
    MODEL_CARD.md

Weights are stored in bfloat16, imported ones in their original precision, and used in float32. The header of a part's
file holds its config, its identity (a hash of its weights), the identities of the parts it was trained with, and a
digest of these three. So a part is written by one rename and always agrees with its description. Identity and digest
are checked whenever a part is loaded, so that damage is noticed; files of early versions have no digest. No pickle is
read.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dalle_mini_impl.checkpoint.check_weights import limited_numbers, non_finite
from dalle_mini_impl.checkpoint.settings import SETTINGS_FILE
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILES, read_text_tokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.read_files import is_file, open_regular_file, unreadable
from dalle_mini_impl.util.text import printable

M = TypeVar("M", bound=nn.Module)

IMAGE_IDS = "image_ids"
"""Name under which an image tokenizer whose decoder alone was trained further keeps, in `trained_with`, the identity of
the one that it has encoder and codebook of, and so the ids of every picture."""
UNKNOWN_IDENTITY = "unknown"
"""Recorded where weights were imported without a text tokenizer; any text tokenizer is accepted with them."""
PARTS = ("image_tokenizer", "transformer", "scorer", "prior", "diffusion_decoder", "upsampler")
"""Names of the parts with weights."""
PART_FILES = (*TEXT_TOKENIZER_FILES, *(f"{part}.safetensors" for part in PARTS))
CARD_FILES = ("MODEL_CARD.md", "README.md")
CHECKPOINT_FILES = (SETTINGS_FILE, *PART_FILES, *CARD_FILES)
"""Files of a checkpoint; nothing else in a folder is read, uploaded or downloaded."""

HEADER_KEYS = ("config", "identity", "trained_with")
"""Entries of the header of a part's file; `digest` is added to them."""
NAME = re.compile(r"\w{1,64}")
"""What identities and names of parts consist of."""
MAX_HEADER_BYTES = 2**24
"""Longest header of a part's file, names and shapes of the tensors included; that of the included model has 6,000."""


@dataclass(frozen=True)
class Part:
    """Content of the file of one part."""

    path: Path
    identity: str
    """Hash of the weights."""
    config: dict[str, Any]
    """Plain values that the part's builder needs."""
    trained_with: dict[str, str]
    """Name of a part that this one was trained with -> its identity."""
    tensors: dict[str, Tensor]

    @property
    def image_ids(self) -> str:
        """Of an image tokenizer: the identity of the one whose ids it makes, by which other parts and caches know it.

        It is its own, unless it has another decoder only.
        """
        return self.trained_with.get(IMAGE_IDS, self.identity)


def save_part(
    model_dir: str | Path,
    part: str,
    module: nn.Module,
    config: dict[str, Any],
    trained_with: dict[str, str],
    dtype: torch.dtype = torch.bfloat16,
    measured: Collection[str] = (),
) -> str:
    """Write one part, whole or not at all, and return its identity.

    Args:
        model_dir: the checkpoint folder; created if missing.
        part: one of `PARTS`.
        module: holds the weights.
        config: plain values that the part's builder needs.
        trained_with: identities of the parts it was trained with, by name.
        dtype: type that floating-point weights are stored in.
        measured: names of tensors that are stored in the type they have.

    Raises:
        UserError: a weight is not finite, another part needs the one that would be replaced, or the file cannot be
            written; what is there stays as it is.
    """
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() and name not in measured else value).cpu().contiguous()
        for name, value in module.state_dict().items()
    }
    return save_tensors(model_dir, part, tensors, config, trained_with)


def save_tensors(
    model_dir: str | Path, part: str, tensors: dict[str, Tensor], config: dict[str, Any], trained_with: dict[str, str]
) -> str:
    """As `save_part`, but from tensors on the CPU, stored in the types they have."""
    if broken := non_finite(tensors):
        raise UserError(
            f"expected finite weights for {part}, got infinite ones or NaN in {broken[0]}, so nothing was written; "
            f"train with a lower learning rate, or import another file"
        )
    identity = weights_identity(tensors)
    check_not_needed(model_dir, part, trained_with.get(IMAGE_IDS, identity))
    header = {"config": json.dumps(config), "identity": identity, "trained_with": json.dumps(trained_with)}
    header["digest"] = _digest(header)
    path = Path(model_dir) / f"{part}.safetensors"
    with replace_file(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:  # the library's word for errors of the operating system
            raise UserError(f"cannot write {path}: {error}; make space or choose a writable path") from error
    return identity


def copy_part(source: Path, part: str, model_dir: str | Path) -> str:
    """Copy a part of one checkpoint into another, whole or not at all, and return its identity.

    Args:
        source: the checkpoint folder to copy from.
        part: one of `PARTS`.
        model_dir: the checkpoint folder to copy to; created if missing.

    Raises:
        UserError: the part is missing or damaged, other parts in `model_dir` need the one that would be replaced, or
            the file cannot be written.
    """
    original = read_part(source, part)
    check_not_needed(model_dir, part, original.image_ids)
    with replace_file(Path(model_dir) / original.path.name) as temporary:
        shutil.copyfile(original.path, temporary)
    return original.identity


def check_not_needed(model_dir: str | Path, part: str, identity: str = "") -> None:
    """Refuse to replace a part that other parts in the folder were trained with.

    Args:
        model_dir: the checkpoint folder.
        part: name of the part to be written.
        identity: of the new part, or of an image tokenizer its `image_ids`; empty before it is trained.

    Raises:
        UserError: the folder's present part has another identity, or other image ids, and is needed.
    """
    folder = Path(model_dir)
    others = [other for other in PARTS if other != part and (folder / f"{other}.safetensors").is_file()]
    if not others or not (folder / f"{part}.safetensors").is_file():
        return
    present = read_part(folder, part, weights=False)
    names = (present.identity, present.image_ids)
    needing = [other for other in others if read_part(folder, other, weights=False).trained_with.get(part) in names]
    if needing and present.image_ids != identity:
        raise UserError(
            f"expected {folder} without parts that need its {part} {present.identity}, got {' and '.join(needing)}; "
            f"move them away, or write to another folder"
        )


def read_part(model_dir: Path, part: str, *, weights: bool = True) -> Part:
    """Read the file of one part, and check that it is not damaged.

    Args:
        model_dir: the checkpoint folder.
        part: one of `PARTS`.
        weights: read the tensors too; without them `Part.tensors` is empty, and only the header is checked.

    Raises:
        UserError: the file is missing or damaged, or cannot be read.
    """
    path = model_dir / f"{part}.safetensors"
    if not os.path.lexists(path) and (os.access(model_dir, os.X_OK) or not os.path.lexists(model_dir)):
        raise UserError(f"{model_dir} has no {path.name}; train that part first, or name another model")
    with open_regular_file(path, "part", "copy or train it again") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if weights and header_bytes <= MAX_HEADER_BYTES:
            check_memory(os.fstat(file.fileno()).st_size, f"the weights in {path}", "use a machine with more memory")
    try:
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {header_bytes:,} bytes")
        with safe_open(path, "pt") as tensor_file:
            header = tensor_file.metadata() or {}
            tensors = {name: tensor_file.get_tensor(name) for name in (tensor_file.keys() if weights else ())}
        config, identity, trained_with = _checked_header(header)
        if weights and weights_identity(tensors) != identity:
            raise ValueError("its weights are not those that were written")
        if broken := non_finite(tensors):
            raise ValueError(f"NaN or infinity in {broken[0]}")
    except PermissionError as error:
        raise unreadable(path, error, "part", "") from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        reason = printable(str(error)[:300])
        raise UserError(
            f"{path} is damaged or was not written by this package ({reason}); copy or train it again"
        ) from error
    return Part(path, identity, config, trained_with, tensors)


def _checked_header(header: dict[str, str]) -> tuple[dict[str, Any], str, dict[str, str]]:
    """Config, identity and `trained_with` of a part.

    Raises:
        ValueError: an entry is missing or has another form, or the header is not the one that was written.
    """
    if not {*HEADER_KEYS} <= header.keys() <= {*HEADER_KEYS, "digest"}:
        raise ValueError(
            f"expected the header entries {', '.join(HEADER_KEYS)}, got {', '.join(header)[:100] or 'none'}"
        )
    if "digest" in header and header["digest"] != _digest(header):
        raise ValueError("its header is not the one that was written")
    config = json.loads(header["config"])
    trained_with = json.loads(header["trained_with"])
    if not (isinstance(config, dict) and isinstance(trained_with, dict)):
        raise ValueError("config or trained_with is no table")
    if not all(
        isinstance(value, str) and NAME.fullmatch(value) for value in (header["identity"], *trained_with.values())
    ):
        raise ValueError("identity or trained_with has a value that is no identity")
    if not all(map(NAME.fullmatch, trained_with)):
        raise ValueError("trained_with has a name that is no part's")
    return config, header["identity"], trained_with


def _digest(header: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([header[key] for key in HEADER_KEYS]).encode()).hexdigest()[:16]


def check_trained_with(part: Part, other: str, identity: str) -> None:
    """Refuse a part that was trained with another tokenizer; an unknown one is accepted.

    Args:
        part: the part, such as the transformer.
        other: name of the part it depends on, such as `text_tokenizer`.
        identity: identity of the `other` part that is to be used with it.

    Raises:
        UserError: the identities differ; the message names both.
    """
    expected = part.trained_with.get(other)
    if expected not in (identity, UNKNOWN_IDENTITY):
        raise UserError(
            f"{part.path} was trained with {other} {expected}, but {identity} was given; "
            f"use the {other} it was trained with"
        )


def fingerprint(folder: Path) -> str:
    """Hash over the identities of all parts in a folder; every generated picture records it."""
    identities = [read_text_tokenizer(folder).identity]
    for part in PARTS:
        if is_file(folder / f"{part}.safetensors"):
            identities.append(read_part(folder, part, weights=False).identity)
    return hashlib.sha256(" ".join(identities).encode()).hexdigest()[:16]


def weights_identity(tensors: dict[str, Tensor]) -> str:
    """Hash of named tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def load_module(build: Callable[[], M], part: Part, device: str) -> M:
    """Build a module from a part's config, load the part's weights into it, move it to its device, set it to eval mode.

    Args:
        build: builds the module; what it allocates is bounded by the size of the part.
        part: config and weights.
        device: where the module goes.

    Raises:
        UserError: the config describes no module, or a larger one, or the weights do not fit it.
    """
    try:
        with limited_numbers(4 * sum(tensor.numel() for tensor in part.tensors.values())):
            module = build()
        module.load_state_dict(part.tensors)  # converts to float32 tensor by tensor
    except Exception as error:  # a config with any values can make networks raise any exception
        reason = printable(str(error)[:1000])
        raise UserError(f"{part.path} does not fit its own config: {reason}; copy or train it again") from error
    return module.to(device).eval()
