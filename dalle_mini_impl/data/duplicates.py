"""Finds pictures that are equal or look alike while many pass by, in bounded memory."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dalle_mini_impl.util.images import on_background

MAX_DIFFERENT = 500_000
"""Equal pictures are searched among so many different ones, the first of the set: each takes about 250 bytes."""
MAX_COMPARED = 30_000
"""Near duplicates are searched among this many pictures, because the work grows with the square of their number."""
MAX_KEYS = 100_000
"""Keys of equal pictures that are remembered; more are only counted."""
MAX_STEP_DIFFERENCES = 3
"""In how many of its 64 brightness steps a near duplicate may differ."""
MAX_COLOUR_DIFFERENCE = 24
"""Largest difference (0 to 255) of the mean colour of any cell of a 16 × 16 grid in a near duplicate. Brightness steps
alone would take a blue heart for a red one, and a smile for a frown."""
STEPS = (8, 8)
"""Shape of a picture's brightness steps."""
THUMBNAIL = (16, 16, 3)
"""Shape of a picture's mean colours."""


@dataclass
class Group:
    """Pictures that are equal."""

    keys: list[str]
    splits: set[str]
    count: int


@dataclass
class Duplicates:
    """What is known of the pictures that passed."""

    firsts: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    """Hash of size and pixels -> key and split of the first picture that has it."""
    repeated: dict[bytes, Group] = field(default_factory=dict)
    """Hash -> all pictures with it, where there is more than one."""
    compared: list[bytes] = field(default_factory=list)
    """Hashes of the pictures that are compared with each other."""
    steps: bytearray = field(default_factory=bytearray)
    """`STEPS` bool of each of these; see `near_duplicate_groups`."""
    thumbnails: bytearray = field(default_factory=bytearray)
    """`THUMBNAIL` uint8 of each of them."""
    listed: int = 0
    """Keys in `repeated`."""
    forgotten: int = 0
    """Pictures that equalled none of `firsts` when that was full."""

    def add(self, key: str, split: str, image: Image.Image) -> None:
        """Look at a picture."""
        content = f"{image.size}".encode() + image.convert("RGBA").tobytes()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest in self.firsts:
            self._repeat(digest, Group([key], {split}, 1))
        elif len(self.firsts) >= MAX_DIFFERENT:
            self.forgotten += 1
        else:
            self.firsts[digest] = (key, split)
            if len(self.compared) < MAX_COMPARED:
                rgb = on_background(image)
                brightness = np.asarray(rgb.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
                self.compared.append(digest)
                self.steps += (brightness[:, 1:] > brightness[:, :-1]).tobytes()
                self.thumbnails += np.asarray(rgb.resize((16, 16), Image.Resampling.BOX)).tobytes()

    def merge(self, other: "Duplicates") -> None:
        """Add what is known of pictures that come after these."""
        self.forgotten += other.forgotten
        numbers = {digest: number for number, digest in enumerate(other.compared)}
        for digest, (key, split) in other.firsts.items():
            group = other.repeated.get(digest)
            if digest in self.firsts:
                self._repeat(digest, group or Group([key], {split}, 1))
                continue
            if len(self.firsts) >= MAX_DIFFERENT:
                self.forgotten += group.count if group else 1
                continue
            self.firsts[digest] = (key, split)
            if group:
                self.repeated[digest] = group
                self.listed += len(group.keys)
            if digest in numbers and len(self.compared) < MAX_COMPARED:
                self.compared.append(digest)
                for own, theirs, shape in (
                    (self.steps, other.steps, STEPS),
                    (self.thumbnails, other.thumbnails, THUMBNAIL),
                ):
                    size = int(np.prod(shape))
                    own += theirs[numbers[digest] * size : (numbers[digest] + 1) * size]

    def _repeat(self, digest: bytes, more: Group) -> None:
        """Add equal pictures to one that is known."""
        group = self.repeated.get(digest)
        if group is None:
            key, split = self.firsts[digest]
            group = self.repeated[digest] = Group([key], {split}, 1)
            self.listed += 1
        kept = more.keys[: max(0, MAX_KEYS - self.listed)]
        group.keys += kept
        group.splits |= more.splits
        group.count += more.count
        self.listed += len(kept)

    def equal_groups(self) -> list[Group]:
        """The groups of equal pictures, in the order of their first ones."""
        return [self.repeated[digest] for digest in self.firsts if digest in self.repeated]

    def near_groups(self) -> Iterator[Group]:
        """The groups of pictures that differ little; of equal ones only the first counts."""
        steps = np.frombuffer(bytes(self.steps), bool).reshape(-1, *STEPS)
        thumbnails = np.frombuffer(bytes(self.thumbnails), np.uint8).reshape(-1, *THUMBNAIL)
        for rows in near_duplicate_groups(steps, thumbnails):
            members = [self.firsts[self.compared[row]] for row in rows]
            yield Group([key for key, _ in members], {split for _, split in members}, len(members))


def near_duplicate_groups(steps: np.ndarray, thumbnails: np.ndarray, rows: int = 256) -> list[list[int]]:
    """Group pictures that differ in few brightness steps and little in colour.

    Brightness steps are the difference hash (dHash): whether brightness rises from one cell to the next.

    Args:
        steps: (n, 8, 8) bool, steps within the rows of the picture at 8 × 9.
        thumbnails: (n, 16, 16, 3) uint8, the picture at 16 × 16.
        rows: number of pictures compared with all others at once, which bounds the memory.

    Returns:
        Groups of two or more indices. Pictures are in one group if a chain of near duplicates connects them.
    """
    signs = steps.reshape(len(steps), -1).astype(np.float32) * 2 - 1
    parent = list(range(len(signs)))  # union-find

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for start in range(0, len(signs), rows):
        # In the product, equal signs add 1 and different ones subtract 1.
        alike = signs[start : start + rows] @ signs[start:].T >= signs.shape[1] - 2 * MAX_STEP_DIFFERENCES
        for left, right in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
            first, second = start + int(left), start + int(right)
            if np.abs(thumbnails[first].astype(np.int16) - thumbnails[second]).max() <= MAX_COLOUR_DIFFERENCE:
                parent[root(second)] = root(first)
    groups = defaultdict(list)
    for index in range(len(parent)):
        groups[root(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]
