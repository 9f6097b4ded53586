"""The training stages in order, and the command that runs one. Imports no torch.

`dalle train STAGE …`, `python -m dalle_mini_impl.train.<stage> …` and both under `accelerate launch` run the same
command. Reading the config comes before importing the stage, so that a slip in it shows at once.
"""

import contextlib
import importlib
import os
import shutil
import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dalle_mini_impl.config.diffusion import DiffusionDecoderRun
from dalle_mini_impl.config.keys import ConfigSection, config_sections
from dalle_mini_impl.config.training import (
    EncodeRun,
    ImageTokenizerRun,
    PriorRun,
    ScorerRun,
    TextTokenizerRun,
    TransformerRun,
)
from dalle_mini_impl.config.yaml_io import build_checked, read_values
from dalle_mini_impl.util.command_line import run_program
from dalle_mini_impl.util.files import check_folder_output, only_writer

MAX_WIDTH = 120
"""Characters in a line of help, where the terminal has more."""
LONGEST_DEFAULT = 16
"""Characters of a default that has its own column; a longer one follows the meaning."""


@dataclass(frozen=True)
class Stage:
    """One training stage."""

    name: str
    """As in `dalle train NAME`; the module is called the same, with underscores."""
    summary: str
    """What it makes of what."""
    config: type
    """Class of its config file."""
    can_resume: bool = True
    """Whether it saves states from which `--resume` continues."""
    in_all_presets: bool = True
    """Whether every preset of configs has a file of it; the others are for DALL-E 2."""

    @property
    def module_name(self) -> str:
        """Name of the module whose `main` is the stage."""
        return f"dalle_mini_impl.train.{self.file_name}"

    @property
    def file_name(self) -> str:
        """Name of its config files and of its module, without suffix."""
        return self.name.replace("-", "_")


STAGES = {
    stage.name: stage
    for stage in (
        Stage("text-tokenizer", "captions -> text tokenizer", TextTokenizerRun, can_resume=False),
        Stage("image-tokenizer", "pictures -> image tokenizer", ImageTokenizerRun),
        Stage("encode", "pictures + image tokenizer -> token cache", EncodeRun, can_resume=False),
        Stage("transformer", "token cache + text tokenizer -> transformer", TransformerRun),
        Stage("scorer", "captioned pictures + text tokenizer -> CLIP scorer", ScorerRun),
        Stage("prior", "captioned pictures + scorer -> prior over its embeddings", PriorRun, in_all_presets=False),
        Stage(
            "diffusion-decoder",
            "captioned pictures + scorer -> diffusion decoder",
            DiffusionDecoderRun,
            in_all_presets=False,
        ),
    )
}
"""By name, in the order in which they are run; each needs what those before it made."""
WHOLE_STAGES = {name: stage for name, stage in STAGES.items() if name != "diffusion-decoder"}
"""Those of `dalle train all`, which trains a prior with presets that have one."""


class StageCommand(click.Command):
    """A command whose help also lists the keys of a stage's config."""

    def __init__(self, stage: Stage, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.stage = stage

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help(ctx, formatter)
        width = min(shutil.get_terminal_size().columns, MAX_WIDTH) - 1
        formatter.write("\nConfig keys, in the file or as KEY=VALUE, with type and default:\n")
        for section in config_sections(self.stage.config):
            formatter.write("\n" + format_section(section, width))


def stage_command(stage: Stage, main: Callable[..., None] | None = None) -> click.Command:
    """The command of a stage.

    Args:
        stage: one of `STAGES`.
        main: the `main` of its module; None imports the module when the command runs.
    """
    number = list(STAGES).index(stage.name) + 1
    folder = "small" if stage.in_all_presets else "emoji"
    example = f"dalle train {stage.name} --config configs/{folder}/{stage.file_name}.yaml"

    def run(config: str, resume: bool, overrides: tuple[str, ...]) -> None:
        settings = load_settings(stage, config, overrides, resume and stage.can_resume)
        try:
            run_alone(stage, settings, resume, main)
        except KeyboardInterrupt as error:
            if not stage.can_resume:
                raise
            raise KeyboardInterrupt("--resume continues from the last saved state") from error

    resume_help = "Continue from the last saved state." if stage.can_resume else "No effect on this stage."
    return StageCommand(
        stage,
        name=stage.name,
        callback=run,
        help=f"Stage {number} of {len(STAGES)}: {stage.summary}.",
        epilog=f"\b\nExample:\n  {example}",
        short_help=f"{number}. {stage.summary}",
        context_settings={"help_option_names": ["-h", "--help"]},
        params=[
            click.Argument(["overrides"], nargs=-1, metavar="[KEY=VALUE]…"),
            click.Option(["--config"], required=True, metavar="FILE", help="YAML file, see dalle config list."),
            click.Option(["--resume"], is_flag=True, help=resume_help),
        ],
    )


def run_alone(stage: Stage, settings: Any, resume: bool = False, main: Callable[..., None] | None = None) -> None:
    """Run a stage as the only process, or launch of processes, that writes its files.

    Args:
        stage: one of `STAGES`.
        settings: its config.
        resume: continue from the last saved state, if the stage can.
        main: the `main` of its module; None imports the module.

    Raises:
        UserError: something else is writing them.
    """
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") == "0":  # of several processes one holds the right to write for all
            for path in written_paths(stage, settings):
                stack.enter_context(only_writer(path))
        stage_main = main or importlib.import_module(stage.module_name).main
        try:
            if stage.can_resume:
                stage_main(settings, resume)
            else:
                stage_main(settings)
        except BaseException as error:
            # Until the traceback is gone, its frames would keep processes that make batches from ending in order.
            traceback.clear_frames(error.__traceback__)
            raise


def load_settings(stage: Stage, config: str, overrides: Sequence[str] = (), resume: bool = False) -> Any:
    """Read the settings of a stage; what they leave out is that of the checkpoint that `start_from` names.

    Args:
        stage: one of `STAGES`.
        config: the YAML file.
        overrides: as in `load`.
        resume: whether the run is to continue; then its saved state says what was left out.

    Raises:
        UserError: as `load`, or there is no such checkpoint.
    """
    values = read_values(stage.config, config, overrides)
    settings: Any = build_checked(stage.config, values, str(config))
    if not getattr(settings, "start_from", ""):
        return settings
    from dalle_mini_impl.train.shared.start import complete_settings

    return complete_settings(settings, values, resume)


def written_paths(stage: Stage, settings: Any) -> list[Path]:
    """The files and folders that a stage writes, in which nothing else may write at the same time.

    Raises:
        UserError: a folder cannot be written.
    """
    if not stage.can_resume:
        return [Path(settings.out)] if settings.out else []
    run = settings.run
    for folder in filter(None, (run.state_dir, run.model_dir)):
        check_folder_output(folder)
    paths = [Path(run.state_dir)] if run.state_dir else []
    return [*paths, Path(run.model_dir) / f"{stage.file_name}.safetensors"] if run.model_dir else paths


def run_stage(name: str, main: Callable[..., None]) -> None:
    """Run a stage as a program, with the arguments of this process; see `run_program`.

    Args:
        name: of the stage.
        main: the `main` of its module, which is not imported a second time.
    """
    stage = STAGES[name]
    run_program(stage_command(stage, main), f"python -m {stage.module_name}")


def format_section(section: ConfigSection, width: int) -> str:
    """The keys of a section as columns: name, type, default, and the meaning wrapped to the width."""
    lines = textwrap.wrap(f"{section.name}: {section.meaning}", width) if section.name else []
    rows = []
    for key in section.keys:
        default, meaning = key.default, key.meaning
        if len(default) > LONGEST_DEFAULT:
            default, meaning = "", f"{meaning} Default: {default}"
        rows.append((key.name, key.kind, default, meaning))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    indent = 2 + sum(widths) + 2 * len(widths)
    for *cells, meaning in rows:
        start = "  " + "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=True))
        if width - indent < width // 3:  # a narrow terminal: the meaning goes below
            lines += [start.rstrip(), *textwrap.wrap(meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
            continue
        wrapped = textwrap.wrap(meaning, width - indent) or [""]
        lines.append(f"{start}  {wrapped[0]}".rstrip())
        lines += [" " * indent + line for line in wrapped[1:]]
    return "\n".join(lines) + "\n" if lines else ""
