"""How fast the stages are here, by running some real steps of each in a scratch folder, whose results are not kept.

Before anything is trained, stand-ins take the place of what earlier stages will make: an image tokenizer after a few
steps, and a token cache that holds the id 0 alone. A step with them takes as long as with the real ones.
"""

import contextlib
import importlib
import io
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.training import EncodeRun, ImageTokenizerRun, TransformerRun
from dalle_mini_impl.data.entries import write_entries
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.data.token_cache import PROBABILITIES_FILE, CacheHeader, write_header
from dalle_mini_impl.train.encode import create_files, encode_batch, variant_pixels
from dalle_mini_impl.train.shared.encoding import Encoder
from dalle_mini_impl.train.whole.folder import read_log
from dalle_mini_impl.train.whole.settings import stage_of

NEVER = 2**40
"""Steps between validations, sheets and states, so that only the last step makes them."""
WARM_UP = 3
"""First steps, which do not count: libraries choose and compile their code in them."""
STAND_IN_PICTURES = 256
"""Pictures of each split in the token cache that stands in."""
ENCODED = 64
"""Pictures that are encoded to measure how long that takes."""


@dataclass(frozen=True)
class Speed:
    """How long the actions of a stage take, in seconds."""

    step: float
    """One optimizer step."""
    validation: float
    """One validation."""
    rest: float
    """Beginning the stage, writing one sheet of samples and one state, and writing the part."""


def measure_stage(stage: str, config: Any, seconds: float, scratch: Path) -> Speed:
    """Train for some seconds; all processes must call this.

    Args:
        stage: file name of a stage that trains in steps.
        config: its settings; what it reads must exist.
        seconds: at least two steps are made, however long they take.
        scratch: folder with the parts that the stage needs in its subfolder `model`.

    Raises:
        UserError: the stage cannot run with these settings.
    """
    state_dir = scratch / stage
    run = replace(
        config.run,
        model_dir=str(scratch / "model"),
        state_dir=str(state_dir),
        minutes=seconds / 60,
        log_every=1,
        validate_every=NEVER,
        sample_every=NEVER if config.run.sample_every else 0,
        save_every=NEVER,
    )
    if isinstance(config, TransformerRun):  # whose schedule needs a number of steps; a step takes as long without it
        config = replace(config, random_order=(0.0, 0.0))
    start = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        importlib.import_module(stage_of(stage).module_name).main(replace(config, run=run), False)
    total = time.monotonic() - start
    lines = read_log(state_dir / "log.jsonl")
    ends = list({line["step"]: line["seconds"] for line in reversed(lines)}.values())[::-1]
    warm_up = min(WARM_UP, len(ends) // 2)
    before = ends[warm_up - 1] if warm_up else 0.0
    last = lines[-1]["seconds"]
    return Speed(
        step=(ends[-1] - before) / (len(ends) - warm_up),
        validation=last - ends[-1],
        rest=max(0.0, total - last),
    )


def write_stand_in_cache(image_tokenizer: ImageTokenizerRun, encode: EncodeRun, scratch: Path) -> Path:
    """Write a token cache with some of the pictures' captions, for the image tokenizer in the scratch folder."""
    folder = scratch / "ids"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    grid = image_tokenizer.model.grid
    scorer = read_part(scratch / "model", "scorer", weights=False) if encode.image_embed else None
    embed_dim = scorer.config["embed_dim"] if scorer else 0
    for split in ("train", "validation"):
        entries = open_store(image_tokenizer.data, split).entries[:STAND_IN_PICTURES]
        create_files(folder / split, encode, len(entries), grid, embed_dim)
        write_entries(folder / split, entries)
        if encode.soft_ids:
            shares = np.load(folder / split / PROBABILITIES_FILE, mmap_mode="r+")
            shares[...] = 1 / encode.soft_ids
            shares.flush()
    identity = read_part(scratch / "model", "image_tokenizer", weights=False).image_ids
    header = CacheHeader(
        identity,
        image_tokenizer.model.codebook_size,
        grid,
        scorer=scorer.identity if scorer else "",
        first_unchanged=encode.first_unchanged,
    )
    write_header(folder, header)
    return folder


def encoding_seconds(encode: EncodeRun, store: PictureStore, model_dir: Path, device: str) -> float:
    """Time in which one variant of one training picture is encoded."""
    encoder = Encoder.load(replace(encode, model_dir=str(model_dir)), device)
    tokenizer = encoder.tokenizer
    rows = np.arange(min(ENCODED, encode.batch_size, len(store)))
    seconds = []
    for _ in range(2):  # the first one warms up
        start = time.monotonic()
        last = max(0, encode.variants - 1)  # the first one may be unchanged
        pixels = variant_pixels(store, rows, last, encode, tokenizer.config.size).to(tokenizer.device)
        ids = encode_batch(encoder, pixels, encode)[0]
        ids.cpu()
        seconds.append((time.monotonic() - start) / len(rows))
    return seconds[-1]
