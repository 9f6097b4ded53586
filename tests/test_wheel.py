"""The built wheel carries everything a user needs, and works without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_has_model_configs_and_tokenizer(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    model = {
        f"dalle_mini_impl/pretrained/emoji/{path.name}"
        for path in (ROOT / "dalle_mini_impl/pretrained/emoji").iterdir()
    }
    configs = {f"dalle_mini_impl/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(model) >= 6
    assert configs
    assert model | configs | {"dalle_mini_impl/tokenizers/emoji.model"} <= names
    assert not {name for name in names if name.startswith(("tests/", "data/", "runs/"))}


def test_installed_wheel_samples_from_an_empty_folder(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    run = [sys.executable, "-m", "dalle_mini_impl"]
    arguments = ["sample", "a red heart", "--candidates", "3", "--keep", "2", "--out", "grid.png"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run(run + arguments, check=True, cwd=work, env=environment, capture_output=True)
    assert Image.open(work / "grid.png").width > 2 * 64
    code = (
        "import dalle_mini_impl, dalle_mini_impl.config.yaml_io as c, dalle_mini_impl.config.training as r;"
        "print(dalle_mini_impl.__file__); c.load(r.TransformerRun, 'configs/emoji/transformer.yaml')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=work, env=environment, capture_output=True, text=True
    )
    assert str(site) in printed.stdout
