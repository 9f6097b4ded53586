"""Rows of training on pictures of one's own: one command for everything beside README's former five commands.

Both train on the same pictures and hold out the same ones. Measured is R-precision: whether the picture that a model
ranks first of several is nearest to the set's own picture of its caption, by the features of a network that took no
part in training. The judge gets the pictures of each model, and the real ones, at the size of that model's pictures.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dalle_mini_impl.bench.readme_commands import FIT, run_command, run_commands
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.config.training import ImageTokenizerRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.fit import fit_picture
from dalle_mini_impl.data.openclipart import COUNT, build_openclipart
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.data.store_builder import build_store
from dalle_mini_impl.evaluate.intervals import TOP_K, Share, format_share, mean_share
from dalle_mini_impl.evaluate.judges import efficientnet_judge
from dalle_mini_impl.evaluate.reference_pictures import (
    ReferencePictures,
    build_r_precisions,
    first_caption,
    open_reference_pictures,
)
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import check_replaceable, write_json
from dalle_mini_impl.util.images import contact_sheet, to_pixels
from dalle_mini_impl.util.save_picture import save_picture

RECORD_FILE = "own.json"
SHEET_FILE = "own.png"
CONTENTS = (RECORD_FILE, SHEET_FILE, "set", "new", "former", "reference", "*.log", "reference.*")
"""What the folder of a comparison holds; the first name marks it."""
PEER = "former"
"""Name of the peer in the rows, of its parts and of its folder."""
KINDS = {"seen": "train", "held-out": "validation"}
"""Kinds of captions -> split of their pictures."""
CUT = 0.01
"""Share of what is drawn that must be cut off for a picture to count as cropped."""
STORE_SIZE = 128
"""Side in pixels of the real pictures that generated ones are compared with."""
SHEET_SIDE = 96
"""Side in pixels of the pictures on the sheet."""


@dataclass(frozen=True, kw_only=True)
class OwnSettings:
    """What to train and to measure."""

    source: str = ""
    """Captioned pictures; empty for a set of clip art."""
    minutes: float = 15.0
    """For the one command."""
    count: int = COUNT
    """Pictures of the set of clip art."""
    validation: float = 0.1
    """Share of the pictures that is held out."""
    former: bool = True
    """Train with the former commands as well."""
    former_steps: int = 0
    """Steps of each of the former stages; 0 for as many as they had."""
    captions: int = 60
    """Captions of each kind to draw."""
    candidates: int = 16
    """Pictures per caption, of which the best is measured."""
    prompts: int = 18
    """Captions on the sheet."""
    shown: int = 4
    """Pictures of each caption there."""

    @classmethod
    def quick(cls, source: str) -> "OwnSettings":
        """A test that everything runs."""
        return cls(source=source, minutes=0.1, count=40, former_steps=2, captions=3, candidates=2, prompts=2, shown=2)


@dataclass(frozen=True)
class OwnCaption:
    """A caption to draw."""

    index: int
    """Of the reference picture that it belongs to."""
    text: str


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a model drew."""

    shares: dict[str, tuple[Share, ...]]
    """Kind of captions -> R-precision at each depth of `TOP_K`."""
    pictures: list[list[Image.Image]]
    """For each caption of the sheet, best first."""


def own_rows(settings: OwnSettings, out: Path) -> Iterator[BenchRow]:
    """Train both ways, and compare; or the new way alone.

    Args:
        settings: what to do.
        out: folder for everything. What an earlier call with the same settings has finished there is not done again.

    Raises:
        UserError: the folder holds anything else, the pictures or an extra are missing, or a training fails.
    """
    judge = efficientnet_judge()  # before hours of work: its extra may be missing
    record = _Record.open(out, settings)
    source = Path(settings.source or out / "set")
    if not settings.source:
        record.timed("set", lambda: build_openclipart(out / "set", settings.count))
    record.timed("new", lambda: train_all(source, settings, out / "new"))
    fits = {"new": load(ImageTokenizerRun, out / "new/configs/image_tokenizer.yaml").data.fit}
    if settings.former:
        record.timed(PEER, lambda: run_commands(source, settings.validation, out / PEER, settings.former_steps))
        fits[PEER] = FIT
    record.timed("reference", lambda: build_store(_reference_config(source, settings, out)))
    drawn = {name: draw(out / name / "model", settings, out / "reference", judge) for name in fits}
    cropped = {name: cropped_share(source, how) for name, how in fits.items()}
    yield from _rows(record, drawn, cropped)
    captions = choose_captions(open_reference_pictures(out / "reference", STORE_SIZE), "seen", settings.prompts)
    save_picture(sheet([caption.text for caption in captions], drawn), out / SHEET_FILE)


def train_all(source: Path, settings: OwnSettings, out: Path) -> None:
    """Train with the one command."""
    options = ["--minutes", f"{settings.minutes:g}", f"data.validation={settings.validation:g}"]
    run_command(["train", "all", str(source), "--out", str(out), *options], out.parent / "new.log")


def _reference_config(source: Path, settings: OwnSettings, out: Path) -> DataConfig:
    return DataConfig(
        source=str(source), store=str(out / "reference"), store_size=STORE_SIZE, validation=settings.validation
    )


@dataclass
class _Record:
    """How long each part took, kept in a file."""

    out: Path
    settings: dict[str, Any]
    seconds: dict[str, float]

    @classmethod
    def open(cls, out: Path, settings: OwnSettings) -> "_Record":
        check_replaceable(out, CONTENTS)
        path = out / RECORD_FILE
        record = cls(out, asdict(settings), {})
        if path.is_file():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
                before, record.seconds = values["settings"], dict(values["seconds"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is damaged ({error}); remove {out} or name another folder") from error
            if before != record.settings:
                raise UserError(
                    f"expected {out} to be of a comparison with these settings, got one with others; remove it or name "
                    f"another folder"
                )
        record.save()
        return record

    def save(self) -> None:
        write_json(self.out / RECORD_FILE, {"settings": self.settings, "seconds": self.seconds})

    def timed(self, name: str, work: Callable[[], object]) -> None:
        """Do a part, unless it is done. One that was broken off begins anew, so that its time is right."""
        if name in self.seconds:
            return
        shutil.rmtree(self.out / name, ignore_errors=True)
        start = time.monotonic()
        work()
        self.seconds[name] = time.monotonic() - start
        self.save()


def choose_captions(reference: ReferencePictures, kind: str, count: int) -> list[OwnCaption]:
    """Captions of one of `KINDS`, each text once, in an order that follows from the pictures' keys.

    A held-out picture whose caption a training picture has as well counts as seen by neither.
    """
    entries = reference.store.entries
    trained = {int(reference.concept_ids[index]) for index in torch.nonzero(reference.of_split("train")).flatten()}
    chosen: dict[int, OwnCaption] = {}
    of_split = sorted(torch.nonzero(reference.of_split(KINDS[kind])).flatten().tolist(), key=lambda i: entries[i].key)
    for index in np.random.default_rng(0).permutation(of_split).tolist():
        concept = int(reference.concept_ids[index])
        if (concept in trained) == (kind == "seen"):
            chosen.setdefault(concept, OwnCaption(index, first_caption(entries[index]).text))
    return list(chosen.values())[:count]


def draw(model: Path, settings: OwnSettings, store: Path, judge: Any) -> Drawn:
    """Draw captions with a model's own settings, and measure the pictures that it ranks first."""
    dalle = DalleMini.from_pretrained(model)
    reference = open_reference_pictures(store, dalle.image_tokenizer.config.size)
    measure = build_r_precisions(reference, {judge.name: judge})[judge.name]
    shares: dict[str, tuple[Share, ...]] = {}
    pictures: list[list[Image.Image]] = []
    for kind in KINDS:
        captions = choose_captions(reference, kind, settings.captions)
        if not captions:
            continue
        best: list[Image.Image] = []
        for number, caption in enumerate(captions):
            result = dalle.generate(caption.text, settings.candidates, settings.shown, seed=number)
            best.append(result[0].image)
            if kind == "seen" and number < settings.prompts:
                pictures.append([candidate.image for candidate in result])
        features = measure.features_of(to_pixels(best, reference.size))
        ranks = measure.ranks(features, reference.concept_ids[[caption.index for caption in captions]])
        shares[kind] = tuple(mean_share((ranks < k).double().tolist()) for k in TOP_K)
    return Drawn(shares, pictures)


def cropped_share(source: Path, fit: str) -> float:
    """Share of the pictures of which a part that is drawn is cut off when they are fitted into a square."""
    pairs = read_pairs(source, SkipLog(), captions="optional")
    cut = [fit_picture(pair.image, (STORE_SIZE, STORE_SIZE), fit).lost > CUT for pair in pairs]
    return sum(cut) / len(cut) if cut else math.nan


def _rows(record: _Record, drawn: dict[str, Drawn], cropped: dict[str, float]) -> Iterator[BenchRow]:
    peer = PEER if PEER in drawn else ""
    for kind in drawn["new"].shares:
        for place, k in enumerate(TOP_K):
            shares = {name: of_model.shares[kind][place] for name, of_model in drawn.items()}
            noted = ", ".join(format_share(share) for share in shares.values())
            yield BenchRow(
                f"own/{kind}/top-{k}",
                shares["new"].value,
                peer,
                shares[PEER].value if peer else math.nan,
                note=f"R-precision, best of {record.settings['candidates']}: {noted}",
                higher_is_better=True,
                details={name: asdict(share) for name, share in shares.items()},
            )
    minutes = {name: record.seconds.get(name, math.nan) / 60 for name in ("new", PEER)}
    details = {"seconds": record.seconds, "settings": record.settings}
    yield BenchRow("own/minutes", minutes["new"], peer, minutes[PEER], note="of training", details=details)
    note = "share of the pictures that lose something drawn"
    yield BenchRow("own/cropped", cropped["new"], peer, cropped.get(PEER, math.nan), note=note)


def sheet(captions: list[str], drawn: dict[str, Drawn]) -> Image.Image:
    """A row for each caption: the best pictures of the one command, then those of the former commands, if they ran."""
    images: list[Image.Image] = []
    labels: list[str] = []
    columns = 0
    for number, caption in enumerate(captions):
        for name in drawn:
            pictures = [
                one.resize((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS) for one in drawn[name].pictures[number]
            ]
            images += pictures
            labels += [caption if name == "new" else PEER, *[""] * (len(pictures) - 1)]
        columns = columns or len(images)
    return contact_sheet(images, columns, labels)
