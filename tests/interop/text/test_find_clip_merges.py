"""CLIP's merges are found in packages that ship them, which are not imported, and in the hub's cache."""

import functools
import gzip
import itertools
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import foreign_dalle_pytorch
from helpers.foreign_dalle_pytorch import dalle_file_content

from dalle_mini_impl.checkpoint.find import load_text_tokenizer
from dalle_mini_impl.interop.text import clip_bpe
from dalle_mini_impl.interop.text import find_clip_merges as module
from dalle_mini_impl.interop.text.find_clip_merges import VOCAB_SIZE, find_clip_merges, locate_merges
from dalle_mini_impl.util.errors import UserError

pytest.importorskip("tokenizers")
BYTES = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)]), *map(chr, range(256, 256 + 68))]
PLACES = {
    "dalle_pytorch": "dalle_pytorch/data/bpe_simple_vocab_16e6.txt",
    "open_clip": "open_clip/bpe_simple_vocab_16e6.txt.gz",
    "clip": "clip/bpe_simple_vocab_16e6.txt.gz",
}


@functools.cache
def merges(end_of_word="</w>"):
    """As many merges as CLIP has, in its format: those of every two bytes, as far as they go."""
    pairs = itertools.islice(itertools.product(BYTES, BYTES), clip_bpe.MERGES)
    return "\n".join(["#version: 0.2", *(f"{a} {b}{end_of_word}" for a, b in pairs)]) + "\n"


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 1) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    """The only folder from which packages could be imported, and an empty cache of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "site-packages"
    folder.mkdir()
    finder = SimpleNamespace(find_spec=lambda name: PathFinder.find_spec(name, [str(folder)]))
    monkeypatch.setattr(module, "importlib", SimpleNamespace(util=finder))
    return folder


@pytest.mark.parametrize("package", PLACES)
def test_merges_are_found_in_a_package_that_is_not_imported(site_packages, package):
    path = put(site_packages / PLACES[package], merges())
    (site_packages / package / "__init__.py").write_text("raise RuntimeError('imported')")
    assert find_clip_merges() == path
    assert locate_merges(None) == locate_merges("bpe_simple_vocab_16e6.txt") == str(path)


def test_merges_are_found_in_the_cache_of_the_hub(site_packages, tmp_path, monkeypatch):
    place = Path("hub") / "models--laion--CLIP-ViT-B-32" / "snapshots" / "0123" / "merges.txt"
    path = put(tmp_path / place, merges())
    assert find_clip_merges() == path
    for variable, folder in (("HF_HOME", "home"), ("XDG_CACHE_HOME", "cache/huggingface")):
        other = put(tmp_path / folder / place, merges())
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        monkeypatch.setenv(variable, str(tmp_path / folder.split("/")[0]))
        assert find_clip_merges() == other
        monkeypatch.delenv(variable)


def test_files_that_are_not_whole_or_another_models_are_passed_over(site_packages):
    put(site_packages / PLACES["dalle_pytorch"], merges()[:9999])
    put(site_packages / PLACES["open_clip"], merges(end_of_word=""))
    assert find_clip_merges() is None
    path = put(site_packages / PLACES["clip"], merges())
    assert find_clip_merges() == path


def test_where_there_are_none_the_command_that_gets_them_is_said(site_packages):
    with pytest.raises(UserError, match=r"first run: \S+ -m pip install --no-deps open_clip_torch$"):
        locate_merges(None)
    with pytest.raises(UserError, match=r"expected CLIP's merges in bpe_simple_vocab_16e6.txt or in a package"):
        locate_merges("bpe_simple_vocab_16e6.txt")


def test_files_that_are_given_are_not_looked_for(site_packages):
    put(site_packages / PLACES["clip"], merges())
    put(Path("bpe_simple_vocab_16e6.txt"), "here")
    for given in ("bpe_simple_vocab_16e6.txt", "missing.json"):
        assert locate_merges(given) == given


# --- the commands


@pytest.fixture
def dalle_pt(monkeypatch):
    """A dalle.pt with as many text ids as CLIP has."""
    monkeypatch.setattr(foreign_dalle_pytorch, "TEXT_VOCAB", VOCAB_SIZE)
    monkeypatch.setattr(foreign_dalle_pytorch, "TEXT_IDS", VOCAB_SIZE + foreign_dalle_pytorch.TEXT_LENGTH)
    torch.save(dalle_file_content(), "dalle.pt")
    return "dalle.pt"


def test_a_dalle_with_clips_text_ids_reads_captions(site_packages, run, dalle_pt):
    path = put(site_packages / PLACES["open_clip"], merges())
    printed = run("import", "dalle-pytorch", dalle_pt, "--out", "model")
    assert "warning" not in printed
    assert f"with 49408 text ids it reads captions by CLIP's merges, found in {path}" in printed
    assert load_text_tokenizer(Path("model")).vocab_size == VOCAB_SIZE
    run("sample", "ab", "--model", "model", "--candidates", 2, "--keep", 1, "--out", "grid.png")


def test_without_merges_the_model_is_imported_and_the_commands_are_said(site_packages, run, dalle_pt):
    printed = run("import", "dalle-pytorch", dalle_pt, "--out", "model")
    assert (
        "add the one it was trained with by dalle import text-tokenizer --out model (expected CLIP's merges" in printed
    )
    assert "-m pip install --no-deps open_clip_torch" in printed
    path = put(site_packages / PLACES["clip"], merges())
    assert f"CLIP's merges found in {path}" in run(
        "import", "text-tokenizer", "bpe_simple_vocab_16e6.txt", "--out", "model"
    )
    assert load_text_tokenizer(Path("model")).vocab_size == VOCAB_SIZE


def test_other_kinds_need_a_file(site_packages, run):
    message = run("import", "text-tokenizer", "--kind", "bert", "--out", "model", code=2)
    assert "expected a file with --kind bert, got none" in message
