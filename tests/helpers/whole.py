"""Whole trainings that take seconds, of twelve pictures."""

import itertools
import os
from pathlib import Path
from unittest import mock

from accelerate.state import AcceleratorState, GradientState

from dalle_mini_impl.train.whole.folder import Record, Request, RunFolder
from dalle_mini_impl.train.whole.run import main
from helpers.training import COLOURS, SHAPES, draw_shape

TINY = (
    "model.image_size=16", "image_tokenizer.model.channels=[16]", "image_tokenizer.model.decoder_blocks=1",
    "image_tokenizer.model.codebook_size=19", "image_tokenizer.model.embed_dim=5", "data.store_size=32",
    "transformer.model.n_layer=1", "model.n_head=2", "model.n_embd=16", "scorer.model.patch_size=8",
    "scorer.model.image_layers=1", "scorer.model.text_layers=1", "scorer.model.embed_dim=7", "run.precision=fp32",
    "encode.precision=fp32", "encode.variants=2", "run.batch_size=6", "text_tokenizer.vocab_size=300",
    "optimizer.muon_learning_rate=0",
)  # fmt: skip
"""Settings with which a step takes milliseconds."""
FIXED = (*TINY, "run.steps=7", "run.save_every=2", "run.validate_every=4", "run.sample_every=7", "run.log_every=1")
"""Settings that depend on no clock."""
MINUTES = 0.02
"""Too little for anything but the least."""


def make_twelve(folder: Path) -> Path:
    """Write twelve pictures with captions: five colours, three shapes, three combinations left out."""
    folder.mkdir(parents=True)
    for number, (name, shape) in enumerate(itertools.product(list(COLOURS)[:5], SHAPES[:3])):
        if number % 5 < 4:
            draw_shape(shape, COLOURS[name]).save(folder / f"{name}-{shape}.png")
            (folder / f"{name}-{shape}.txt").write_text(f"a {name} {shape}\n")
    return folder


def train_whole(source: Path | str, out: Path, *settings: str, overwrite: bool = False, **request) -> Record:
    """Run `dalle train all` in this process, as a fresh process would, on the CPU; returns the record of the run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    asked = {"source": str(source), "minutes": MINUTES, "settings": settings or FIXED, **request}
    with mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}):
        main(Request(**asked), out, overwrite)
    record = RunFolder(out).load()
    assert record is not None
    return record


def results(record: Record) -> dict[str, str]:
    """Identity of what each stage made."""
    return {name: stage.result for name, stage in record.stages.items()}
