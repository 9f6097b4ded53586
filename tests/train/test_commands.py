"""`dalle train STAGE` and `python -m dalle_mini_impl.train.<stage>` are one command."""

import subprocess
import sys
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from helpers.training import DEADLINE, RUNS, environment, python

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.keys import ConfigKey, ConfigSection, config_sections
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.train import stages
from dalle_mini_impl.train.stages import format_section, stage_command


@pytest.fixture
def called(monkeypatch):
    """Calls of a stage's `main`, which does nothing else."""
    calls: list[Any] = []
    for name in RUNS:
        module = __import__(f"dalle_mini_impl.train.{name}", fromlist=["main"])
        monkeypatch.setattr(module, "main", lambda *arguments, name=name: calls.append((name, *arguments)))
    return calls


def test_the_group_lists_the_stages_in_order(run):
    lines = run("train", "--help").splitlines()
    names = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :]]
    assert names == [
        "all",
        "text-tokenizer",
        "image-tokenizer",
        "encode",
        "transformer",
        "scorer",
        "prior",
        "diffusion-decoder",
    ]


def test_the_command_runs_its_stage_with_config_and_overrides(run, untrained, called):
    for name, stage in stages.STAGES.items():
        path = untrained.folder / f"{stage.file_name}.yaml"
        run("train", name, "--config", path, "data.store=x" if name != "transformer" else "cache=x")
        module, config, *resume = called.pop()
        assert module == stage.file_name
        assert isinstance(config, stage.config)
        settings = to_dict(config)
        assert (settings["cache"] if name == "transformer" else settings["data"]["store"]) == "x"
        assert resume == ([False] if stage.can_resume else [])


def test_options_and_overrides_mix(run, untrained, called):
    run("train", "scorer", "run.seed=3", "--config", untrained.folder / "scorer.yaml", "--resume", "run.steps=7")
    ((_, config, resume),) = called
    assert (config.run.seed, config.run.steps, resume) == (3, 7, True)


def test_shipped_configs_are_found_from_any_folder(run, called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("train", "encode", "--config", "configs/emoji/encode.yaml")
    assert called[0][1].out == "data/emoji-ids"


def test_a_missing_config_is_refused(refused):
    assert "missing option '--config'" in refused("train", "scorer").lower()
    assert refused("train", "scorer", "--config", "nowhere.yaml").startswith("error: cannot read config nowhere.yaml")


def test_an_unknown_stage_is_refused(refused):
    assert "no such command 'scorers'" in refused("train", "scorers")


def test_an_interrupted_stage_names_resume(untrained):
    def interrupt(config, resume):
        raise KeyboardInterrupt

    command = stage_command(stages.STAGES["scorer"], interrupt)
    arguments = ["--config", str(untrained.folder / "scorer.yaml")]
    with (
        pytest.raises(KeyboardInterrupt, match="--resume continues from the last saved state"),
        command.make_context("scorer", arguments) as context,
    ):
        command.invoke(context)


# --- help


@pytest.mark.parametrize("name", stages.STAGES)
def test_help_lists_every_key(run, name):
    stage = stages.STAGES[name]
    lines = run("train", name, "--help").splitlines()
    assert f"  Stage {[*stages.STAGES].index(name) + 1} of {len(stages.STAGES)}: {stage.summary}." in lines
    words = [line.split() for line in lines]
    for section in config_sections(stage.config):
        for key in section.keys:
            assert any(line[:1] == [key.name] for line in words), key.name


def test_a_section_is_printed_as_columns():
    (section,) = [section for section in config_sections(stages.TransformerRun) if section.name == "plateau"]
    lines = format_section(section, 79).splitlines()
    assert max(map(len, lines)) <= 79
    assert "  plateau.halvings  " in "\n".join(lines)
    start = [line for line in lines if line.startswith("  plateau.halvings")]
    assert start[0].split()[:3] == ["plateau.halvings", "int", "0"]


def test_a_long_default_follows_the_meaning():
    keys = (
        ConfigKey("names", "list of str", "[a red heart, a cat]", "Names to use."),
        ConfigKey("n", "int", "3", "N."),
    )
    text = " ".join(format_section(ConfigSection("", "", keys), 79).split())
    assert text == "names list of str Names to use. Default: [a red heart, a cat] n int 3 N."


@pytest.mark.parametrize("width", [40, 60])
def test_on_narrow_terminals_the_meaning_goes_below(width):
    section = config_sections(stages.TransformerRun)[0]
    lines = format_section(section, width).splitlines()
    assert "      Folder of the token cache." in lines


def test_help_imports_no_torch():
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from dalle_mini_impl.cli import dalle\n"
        "for words in ('train', *(f'train {name}' for name in %r), 'config', 'config list', 'config show'):\n"
        "    assert CliRunner().invoke(dalle, [*words.split(), '--help']).exit_code == 0, words\n"
        "assert CliRunner().invoke(dalle, ['config', 'list']).exit_code == 0\n"
        "assert not {'torch', 'numpy', 'PIL', 'accelerate'} & set(sys.modules)" % [*stages.STAGES]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stderr


# --- as programs


@pytest.mark.parametrize(
    "program", [("dalle_mini_impl.train.transformer",), ("dalle_mini_impl", "train", "transformer")]
)
def test_a_bad_config_ends_a_program_with_one_line(tmp_path, program):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"run": {"stepps": 3}}))
    process = python("-m", *program, "--config", str(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert output == ""
    assert errors.splitlines() == [f"error: {path}: run: unknown key 'stepps'; did you mean 'steps'?"]


def test_the_command_trains(untrained, tmp_path):
    home = untrained.copy(tmp_path / "home")
    result = CliRunner().invoke(dalle, ["train", "text-tokenizer", *home.arguments("text_tokenizer")])
    assert result.exit_code == 0, result.output
    assert "text tokenizer " in result.output
    assert (home.folder / "words.model").is_file()
