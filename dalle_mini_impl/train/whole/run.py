"""A folder of pictures in, a model and a report out: `main` runs the stages within the minutes asked for.

Each stage runs with a fixed number of steps, chosen just before it begins by the time that is left and the speed that
is measured then, from a config file that the plain command would take as well. So it resumes exactly after a kill, and
a stage that is finished is recognised by its config and by the identity of what it made.
"""

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dalle_mini_impl.checkpoint.parts import copy_part, read_part
from dalle_mini_impl.checkpoint.text_tokenizer import add_text_tokenizer
from dalle_mini_impl.config.presets import PresetConfig, find_preset, load_presets
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.data.token_cache import read_header
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.shared.fsdp import fsdp_requested
from dalle_mini_impl.train.shared.state import find_states
from dalle_mini_impl.train.stages import run_alone
from dalle_mini_impl.train.whole import plan
from dalle_mini_impl.train.whole.folder import (
    SCRATCH,
    Record,
    Request,
    RunFolder,
    StageRecord,
    digest,
    training_seconds,
)
from dalle_mini_impl.train.whole.measure import Speed, encoding_seconds, measure_stage, write_stand_in_cache
from dalle_mini_impl.train.whole.origin import find_origin
from dalle_mini_impl.train.whole.pictures import PictureFacts
from dalle_mini_impl.train.whole.prepare import Composer, check_folder, open_record, prepare_pictures, presets_for
from dalle_mini_impl.train.whole.report import write_report
from dalle_mini_impl.train.whole.results import measure_results, sample_command
from dalle_mini_impl.train.whole.settings import TRAINED, divide_settings, stage_of, write_config
from dalle_mini_impl.util.devices import choose_device
from dalle_mini_impl.util.distributed import Processes
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import only_writer, values_digest

LEAST_PROBE = 0.1
"""Seconds in which the speed of a stage is measured, at the least."""
GO_ON = "the same command goes on from here"
"""What an interrupted run tells."""


@dataclass
class Run:
    """One call of the command."""

    processes: Processes
    composer: Composer
    record: Record
    """Kept up to date in the main process alone."""
    facts: PictureFacts
    began: float
    """When this call began, on the monotonic clock."""
    spent: float
    """Seconds that earlier calls trained for."""
    preset: PresetConfig
    reuse: bool
    """Whether the image tokenizer of the checkpoint that is started from stays as it is."""

    @property
    def folder(self) -> RunFolder:
        """Where everything is written."""
        return self.composer.folder

    @property
    def total(self) -> float:
        """Seconds that were asked for."""
        return 60 * self.composer.request.minutes

    @property
    def left(self) -> float:
        """Seconds until everything should be finished."""
        return self.total - self.spent - (time.monotonic() - self.began)

    @property
    def scratch(self) -> Path:
        """Where the speed of the stages is measured."""
        return self.folder.path / SCRATCH

    def configs(self) -> dict[str, Any]:
        """The settings of the stages, before the time has its say."""
        return self.composer.compose(self.preset, self.facts, self.processes.count)

    @property
    def order(self) -> tuple[str, ...]:
        """The parts of the time, in the order in which they are done."""
        configs = self.configs()
        if "prior" in configs:
            return plan.PRIOR_ORDER
        return plan.EMBEDDING_ORDER if configs["transformer"].image_embed.positions else plan.ORDER

    def budget(self, part: str, left: float) -> float:
        """Seconds for one part, if it and all after it divide what is left."""
        return plan.budget(self.preset, part, left, self.total, self.order)

    def stores(self) -> dict[str, PictureStore]:
        """The pictures with captions, by split."""
        data = self.configs()["scorer"].data
        return {split: open_store(data, split) for split in ("train", "validation")}

    def measure(self, stage: str, config: Any) -> Speed:
        """The speed of a stage; all processes must call this."""
        seconds = max(LEAST_PROBE, self.composer.table.probe * self.total)
        return measure_stage(stage, config, seconds, self.scratch)


def main(request: Request, out: Path, overwrite: bool = False) -> None:
    """Train a whole model, or go on where an earlier call of the same command ended.

    Args:
        request: what to train on, and for how long.
        out: folder of the run; see `folder.py` for what it holds.
        overwrite: set aside what an earlier run left there, and begin anew.

    Raises:
        UserError: the request or a setting is wrong, the pictures cannot be read, or the folder holds something else,
            or a run that was begun with another request or with other pictures.
    """
    began = time.monotonic()
    if fsdp_requested():
        raise UserError(
            "expected processes that each hold the whole model, got a launcher's file that requests FSDP; launch train "
            "all with configs/accelerate/gpus-8.yaml, or run the stages one by one"
        )
    processes = Processes()
    folder, table = RunFolder(out), load_presets()
    check_folder(request.source, out)
    divide_settings(request.settings)  # refuses wrong ones before anything is read
    with ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(only_writer(out))
        try:
            record = processes.decide(lambda: open_record(folder, request, table, overwrite))
            if record.figures:
                if processes.is_main:
                    print(f"{out} is finished, and nothing was changed; --overwrite trains anew")
                    print(sample_command(folder, record.figures["caption"]))
                return
            spent = record.spent + unfinished_seconds(folder, record)
            origin = processes.decide(lambda: find_origin(request.start_from))
            composer = Composer(folder, request, table, record.data["settings"], origin)
            facts, reuse = processes.decide(
                lambda: (prepare_pictures(composer, record), record.data.get("reuse", False))
            )
            tried = presets_for(request, table, record.data["total"], record.data["side"])
            preset = find_preset(table, record.preset) if record.preset else tried[0]
            run = Run(processes, composer, record, facts, began, spent, preset, reuse)
            run_stage(run, "text_tokenizer")
            start = time.monotonic()
            speeds = {} if record.preset else choose_preset(run, tried)
            record.seconds["measuring"] = record.seconds.get("measuring", 0.0) + time.monotonic() - start
            for stage in processes.decide(lambda: run.order)[:-1]:
                run_stage(run, stage, speeds.get(stage) if stage == "image_tokenizer" else None)
            if processes.is_main:
                print(f"drawing and measuring; {remaining(run)}")
                with folder.timed(record, "report"):
                    results = measure_results(folder, run.budget("report", run.left))
                record.figures = results.figures
                write_report(folder, record, run.stores(), facts, results)
                folder.save(record)
                print(f"{folder.report} shows what it can do")
                print(sample_command(folder, record.figures["caption"]))
            processes.decide(lambda: None)  # the others wait
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(GO_ON) from error


def choose_preset(run: Run, tried: list[PresetConfig]) -> dict[str, Speed]:
    """Choose the first preset of which enough steps fit into the time here, print the plan, and write the configs.

    All processes must call this.

    Returns:
        The speed of each stage that trains in steps.
    """
    for preset in tried:
        run.preset = preset
        speeds = measure_all(run)
        planned, configs = run.processes.decide(partial(plan_all, run, speeds))
        slow = plan.too_slow(preset, planned, run.composer.fixed)
        if not slow or preset is tried[-1]:
            break
        if run.processes.is_main:
            print(f"{preset.name}: only {planned[slow].steps:,} steps of the {slow.replace('_', ' ')} would fit here")
    if run.processes.is_main:
        model = configs["image_tokenizer"].model
        h, w = model.grid
        print(
            f"preset {preset.name}: pictures of {model.image_size} pixels as {h}×{w} ids of {model.codebook_size:,}, "
            f"{configs['transformer'].model.n_layer} layers of width {configs['transformer'].model.n_embd}"
        )
        print(plan.plan_text(planned))
        for stage, config in configs.items():
            if stage in planned:
                write_config(run.folder.config(stage), stage, config)
        run.record.preset = preset.name
        run.folder.save(run.record)
    return speeds


def measure_all(run: Run) -> dict[str, Any]:
    """The speeds of all stages, with stand-ins for what is not trained yet; all processes must call this."""
    configs = run.processes.decide(run.configs)
    run.processes.decide(lambda: shutil.rmtree(run.scratch, ignore_errors=True))
    speeds: dict[str, Any] = {}
    origin = run.composer.origin
    if origin and run.reuse:
        run.processes.decide(lambda: copy_part(origin.folder, "image_tokenizer", run.scratch / "model"))
    else:
        speeds["image_tokenizer"] = run.measure("image_tokenizer", configs["image_tokenizer"])
    speeds["scorer"] = run.measure("scorer", configs["scorer"])
    if "prior" in configs:
        speeds["prior"] = run.measure("prior", configs["prior"])
    cache = run.processes.decide(
        lambda: str(write_stand_in_cache(configs["image_tokenizer"], configs["encode"], run.scratch))
    )
    speeds["transformer"] = run.measure("transformer", replace(configs["transformer"], cache=cache))
    store = open_store(configs["encode"].data, "train")
    speeds["encode"] = run.processes.decide(
        lambda: encoding_seconds(configs["encode"], store, run.scratch / "model", choose_device(run.processes.device))
    )
    run.processes.decide(lambda: shutil.rmtree(run.scratch, ignore_errors=True))
    return speeds


def plan_all(run: Run, speeds: dict[str, Any]) -> tuple[dict[str, plan.PlannedStage], dict[str, Any]]:
    """What each stage will do in the time that is left, and the configs for it."""
    configs = run.configs()
    left = run.left
    planned = {}
    for part in run.order:
        if part == "image_tokenizer" and run.reuse:
            continue
        seconds = run.budget(part, left)
        if part in TRAINED:
            configs[part] = plan.with_steps(
                configs[part], seconds, speeds[part], run.composer.table, run.composer.fixed[part]
            )
            seconds = plan.expected_seconds(configs[part], speeds[part])
            planned[part] = plan.PlannedStage(seconds, configs[part].run.steps, speeds[part])
        else:
            if part == "encode":
                configs[part], seconds = with_variants(run, configs[part], seconds, speeds[part])
            planned[part] = plan.PlannedStage(seconds)
        left -= seconds
    return planned, configs


def with_variants(run: Run, config: Any, seconds: float, each: float) -> tuple[Any, float]:
    """The encode stage's config with as many variants as fit into its time, and how long it will take."""
    train, held_out = run.facts.train, run.facts.held_out
    if "variants" not in run.composer.fixed["encode"]:
        config = replace(config, variants=plan.fitting_variants(config, train, held_out, seconds, each))
    return config, each * (train * max(1, config.variants) + held_out)


def run_stage(run: Run, stage: str, speed: Speed | None = None) -> None:
    """Run a stage, or what is left of it; nothing if it is finished. All processes must call this.

    Args:
        run: the run.
        stage: file name of the stage.
        speed: of the stage, if it has just been measured.

    Raises:
        UserError: what the stage made, or its config, is not what the record of the run says.
    """
    processes, folder = run.processes, run.folder
    if processes.decide(lambda: is_finished(run, stage)):
        return
    if run.composer.origin and (stage == "text_tokenizer" or (stage == "image_tokenizer" and run.reuse)):
        processes.decide(lambda: adopt(run, stage))
        return
    if not processes.decide(lambda: stage in run.record.stages):
        config = processes.decide(run.configs)[stage]
        if stage in TRAINED and speed is None:
            start = time.monotonic()
            processes.decide(lambda: copy_parts(run))
            speed = run.measure(stage, config)
            run.record.seconds["measuring"] = run.record.seconds.get("measuring", 0.0) + time.monotonic() - start
        processes.decide(lambda: begin_stage(run, stage, config, speed))
    config = load(stage_of(stage).config, folder.config(stage))
    resume = stage in TRAINED and processes.decide(lambda: bool(find_states(folder.path / stage)))
    start = time.monotonic()
    if stage != "text_tokenizer" or processes.is_main:
        run_alone(stage_of(stage), config, resume)
    if processes.is_main:
        kept = run.record.stages[stage]
        kept.seconds = max(time.monotonic() - start, training_seconds(folder.log(stage)))
        kept.result = result_of(folder, stage)
        folder.save(run.record)
        if stage in TRAINED:
            with folder.timed(run.record, "report"):
                write_report(folder, run.record, run.stores(), run.facts)


def begin_stage(run: Run, stage: str, config: Any, speed: Speed | None) -> None:
    """Fix the settings of a stage by the time that is left, and write them."""
    shutil.rmtree(run.scratch, ignore_errors=True)
    seconds = 0.0
    if stage != "text_tokenizer":
        seconds = run.budget(stage, run.left)
    number = stage_of(stage).name.replace("-", " ")
    if speed is not None:
        table, fixed = run.composer.table, run.composer.fixed[stage]
        config = plan.with_steps(config, seconds, speed, table, fixed)
        seconds = plan.expected_seconds(config, speed)
        print(f"{number}: {config.run.steps:,} steps in about {plan.duration(seconds)}; {remaining(run)}")
    elif stage == "encode":
        store = open_store(config.data, "train")
        each = encoding_seconds(config, store, run.folder.model, choose_device(run.processes.device))
        config, seconds = with_variants(run, config, seconds, each)
        times = f"{config.variants} variants of each picture" if config.variants else "each picture once"
        print(f"{number}: {times} in about {plan.duration(seconds)}; {remaining(run)}")
    write_config(run.folder.config(stage), stage, config)
    run.record.stages[stage] = StageRecord(config=digest(run.folder.config(stage)), planned=seconds)
    run.folder.save(run.record)


def remaining(run: Run) -> str:
    """How long everything will still take, in words."""
    left = run.left
    return f"{plan.duration(left)} left for everything" if left >= 1 else "the time is used up"


def adopt(run: Run, stage: str) -> None:
    """Take over a tokenizer of the checkpoint that is started from, in place of the stage that would train one."""
    origin, folder = run.composer.origin, run.folder
    assert origin is not None
    if stage == "text_tokenizer":
        origin.copy_text_tokenizer(folder.text_tokenizer)
    else:
        copy_part(origin.folder, "image_tokenizer", folder.model)
    run.record.stages[stage] = StageRecord(config="", result=result_of(folder, stage))
    folder.save(run.record)


def copy_parts(run: Run) -> None:
    """Prepare the scratch folder for a stage that needs the image tokenizer, or the scorer and its text tokenizer."""
    shutil.rmtree(run.scratch, ignore_errors=True)
    add_text_tokenizer(run.scratch / "model", run.folder.text_tokenizer)
    for part in ("image_tokenizer", "scorer"):
        if (run.folder.model / f"{part}.safetensors").is_file():
            copy_part(run.folder.model, part, run.scratch / "model")


def is_finished(run: Run, stage: str) -> bool:
    """Whether a stage has been finished, and what it made is still there.

    Raises:
        UserError: its config was changed since it began, or something else lies where its result was.
    """
    kept = run.record.stages.get(stage)
    if kept is None:
        return False
    path = run.folder.config(stage)
    if digest(path) != kept.config:
        raise UserError(
            f"expected {path} as it was when its stage began, got another content; run that stage by hand with `dalle "
            f"train {stage_of(stage).name} --config {path}`, put the file back, or add --overwrite to train anew"
        )
    found = result_of(run.folder, stage)
    if kept.result and found and found != kept.result:
        raise UserError(
            f"expected the {stage.replace('_', ' ')} {kept.result} that this run made in {run.folder.path}, got "
            f"{found}; put it back, or add --overwrite to train anew"
        )
    return bool(kept.result and found)


def result_of(folder: RunFolder, stage: str) -> str:
    """Identity of what a stage made; empty if it is not there."""
    if stage == "text_tokenizer":
        return TextTokenizer(folder.text_tokenizer).identity if folder.text_tokenizer.is_file() else ""
    if stage == "encode":
        return values_digest(read_header(folder.ids).checksums) if folder.ids.is_dir() else ""
    part = folder.model / f"{stage}.safetensors"
    return read_part(folder.model, stage, weights=False).identity if part.is_file() else ""


def unfinished_seconds(folder: RunFolder, record: Record) -> float:
    """Time that stages which can be resumed have trained for."""
    return sum(
        training_seconds(folder.log(name))
        for name, stage in record.stages.items()
        if not stage.result and find_states(folder.path / name)
    )
