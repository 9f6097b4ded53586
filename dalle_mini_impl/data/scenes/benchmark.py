"""Writes scenes to a folder, for people who want them as a benchmark."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dalle_mini_impl.config.scenes import LANGUAGES, TASKS
from dalle_mini_impl.data.emoji.art import VENDORS
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.data.scenes.composer import compose_scene, scene_art
from dalle_mini_impl.data.scenes.plan import Split
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_folder

CONTENTS = ("scenes.json", "metadata.jsonl", "NOTICE", "*.png")
"""What a set's folder holds; the first name marks it."""
NOTICE = """The pictures in this folder are synthetic: they were composed of emoji art, recoloured, resized and put on
plain backgrounds. scenes.json names the artists and the licences of the art under `credits`; whoever publishes
pictures keeps these.
"""


def write_scenes(
    out: Path,
    store: PictureStore,
    *,
    count: int,
    size: int,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    languages: Sequence[str] = LANGUAGES,
    split: Split = "train",
) -> dict[str, Any]:
    """Compose scenes and write them as PNG files with a `metadata.jsonl`, which the readers of this package read.

    Args:
        out: folder to write; an older set there is replaced once the new one is complete.
        store: of the emoji set.
        count: number of scenes; scene `i` of a seed is the same whatever the count.
        size: side of the pictures in pixels.
        seed: another one gives other scenes.
        tasks: to choose from.
        languages: of the captions.
        split: whether combinations that training never sees are left out, or are all there is.

    Returns:
        Counts by task, vendor and language, also written as `scenes.json`.

    Raises:
        UserError: the store has no art that scenes can be made of, or `split` has no scene of these tasks.
    """
    art = scene_art(store, tasks)
    used: dict[str, Counter[str]] = {"tasks": Counter(), "vendors": Counter(), "languages": Counter()}
    with replace_folder(out, CONTENTS) as folder:
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
            for row in tqdm(range(count), desc="composing", unit=" scenes", delay=2):
                try:
                    scene = compose_scene(
                        art, seed=seed, step=0, row=row, size=size, tasks=tasks, languages=languages, split=split
                    )
                except ValueError as error:
                    raise UserError(f"{error}; choose other tasks, or a store of more pictures") from error
                name = f"{row:06d}.png"
                scene.image.save(folder / name)
                line = {"file_name": name, f"caption_{scene.language}": scene.caption, "vendor": scene.vendor}
                lines.write(json.dumps({**line, "plan": asdict(scene.plan)}, ensure_ascii=False) + "\n")
                used["tasks"][scene.plan.task] += 1
                used["vendors"][scene.vendor] += 1
                used["languages"][scene.language] += 1
        (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")
        counts = {name: dict(sorted(counter.items())) for name, counter in used.items()}
        manifest = {"name": "scenes", "synthetic": True, "size": size, "seed": seed, "split": split, "count": count}
        manifest["counts"] = counts
        manifest["credits"] = {
            vendor.name: {"attribution": vendor.attribution, "licence": vendor.licence}
            for vendor in VENDORS
            if vendor.name in counts["vendors"]
        }
        (folder / CONTENTS[0]).write_text(json.dumps(manifest, ensure_ascii=False, indent=2), encoding="utf-8")
    return manifest
