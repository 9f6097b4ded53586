"""`dalle doctor`."""

import importlib.metadata
import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from dalle_mini_impl.bench import doctor
from dalle_mini_impl.bench.doctor import Finding, examine
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.sampling.native import library, linear
from dalle_mini_impl.util.threads import SPIN_COUNT


def run(*arguments):
    return CliRunner().invoke(dalle, ["doctor", *arguments], catch_exceptions=False)


def findings():
    """Every finding by its name."""
    return {found.name: found for group in examine().values() for found in group}


@pytest.fixture
def quick(monkeypatch):
    """Without drawing a picture."""
    monkeypatch.setattr(doctor, "_picture", lambda: iter([Finding("a picture", "drawn")]))


def test_a_sound_machine_works_and_draws():
    result = run("--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["works"] is True
    assert list(report["findings"]) == ["Program", "Compute", "Extras", "Places"]
    found = {one["name"]: one for group in report["findings"].values() for one in group}
    assert found["a picture"]["value"].startswith("drawn by emoji in ")
    assert f"torch {importlib.metadata.version('torch')}" in found["packages"]["value"]
    assert found["PyTorch"]["value"].startswith(torch.__version__)
    assert found["threads"]["value"].startswith(f"{torch.get_num_threads()} on ")
    assert not any(one["broken"] for one in found.values())
    for heading in ("Program:", "Extras:", "  PyTorch ", "  waiting "):
        assert heading in result.stderr


class Message:
    """Metadata of a distribution with these extras."""

    def __init__(self, *extras):
        self.extras = extras

    def get_all(self, name):
        return self.extras if name == "Provides-Extra" else None


@pytest.mark.usefixtures("quick")
def test_extras_have_versions_or_an_install_line(monkeypatch):
    def version(name):
        if name == "resvg-py":
            raise importlib.metadata.PackageNotFoundError(name)
        return "3.0"

    lines = ["torch>=2.9", "resvg-py>=0.5; extra == 'svg'", 'peft>=0.18 ; extra == "lora"']
    lines += ["einops>=4; extra == 'lora'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: Message("svg", "lora"))
    monkeypatch.setattr(importlib.metadata, "version", version)
    found = findings()
    assert found["svg"].value == "not installed; run: pip install 'resvg-py>=0.5'"
    assert found["lora"].value == "peft 3.0; run: pip install 'einops>=4'"
    assert not found["svg"].broken
    assert not found["svg"].advice


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("installed", [None, "2.8.9"])
def test_a_missing_or_old_package_is_broken(monkeypatch, installed):
    version = importlib.metadata.version

    def other(name):
        if name == "torch" and installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed if name == "torch" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", other)
    result = run()
    assert result.exit_code == 1
    assert f"{installed or 'not installed'}, needed: torch>=2.9" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("  torch: run: pip install 'torch>=2.9'")


def test_a_model_that_does_not_draw_is_broken(monkeypatch, tmp_path):
    monkeypatch.setattr("dalle_mini_impl.checkpoint.find.SHIPPED_MODELS", tmp_path)
    result = run()
    assert result.exit_code == 1
    assert "fails: UserError: no model 'emoji'" in result.stdout


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Sets another C compiler for one test."""

    def choose(command):
        monkeypatch.setenv("CC", command)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        library.load.cache_clear()

    yield choose
    monkeypatch.undo()
    library.load.cache_clear()


@pytest.mark.usefixtures("quick")
def test_without_a_compiler_it_works_more_slowly(compiler):
    compiler("no-such-compiler")
    result = run()
    assert result.exit_code == 0
    assert "no-such-compiler does not work" in result.stdout
    assert "  C compiler: install one" in result.stdout
    assert "none; PyTorch computes instead" in result.stdout


@pytest.mark.usefixtures("quick")
def test_compiled_code_that_computes_wrong_numbers_is_broken(monkeypatch):
    if library.load() is None:
        pytest.skip("there is no C compiler with OpenMP")
    right = linear.NativeLinear.__call__
    assert findings()["compiled code"].value == "works"
    monkeypatch.setattr(linear.NativeLinear, "__call__", lambda self, x: right(self, x) + 1)
    assert findings()["compiled code"].broken
    assert run().exit_code == 1


@pytest.mark.usefixtures("quick")
def test_settings_of_threads_are_judged(monkeypatch):
    assert not findings()["threads"].advice
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert "set OMP_NUM_THREADS=" in findings()["threads"].advice
    monkeypatch.setenv("GOMP_SPINCOUNT", SPIN_COUNT)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert not findings()["waiting"].advice
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "300000"), ("GOMP_SPINCOUNT", "INFINITE")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            assert f"{name}={value}" in findings()["waiting"].value
            assert "unset them" in findings()["waiting"].advice


@pytest.mark.usefixtures("quick")
def test_places_say_how_much_room_they_have(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    found = findings()
    assert found["code cache"].value.startswith(f"{tmp_path}/caches/dalle-mini-impl, ")
    assert found["hub cache"].value.startswith(f"{tmp_path}/caches/huggingface/hub, ")
    assert not (tmp_path / "caches/huggingface").exists()
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert findings()["hub cache"].advice.startswith("make room")


@pytest.mark.usefixtures("quick")
def test_a_copy_that_pip_did_not_install_is_examined_too(monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    result = run()
    assert result.exit_code == 0
    assert "unknown, because the program was not installed by pip" in result.stdout
    assert "Extras:\n  unknown\n" in result.stdout
