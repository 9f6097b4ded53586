"""Checkpoints on a hub: downloading, pushing, and model cards."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner
from helpers.models import IMAGE_TOKENIZER, SAMPLING, make_image_tokenizer
from helpers.scorers import SIZE, LetterTokenizer, make_clip
from helpers.standin_hub import Repository, put_into_repository

from dalle_mini_impl import ImageTokenizer
from dalle_mini_impl.checkpoint import parts as checkpoint
from dalle_mini_impl.checkpoint import publish as sharing
from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.settings import save_settings
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.checkpoint import AboutConfig, Figure
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.scorer.adapters import ADAPTERS
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import read_metadata

library = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # a deprecation inside the library
PARTS = {
    "config.yaml",
    "text_tokenizer.model",
    "image_tokenizer.safetensors",
    "transformer.safetensors",
    "scorer.safetensors",
}


def error_line(text):
    """The error in what a command printed: its last line, after messages and progress bars."""
    assert "Traceback" not in text
    *_, last = text.splitlines()
    assert last.startswith("error: ")
    return last


# --- push and load


def test_pushed_checkpoint_generates_the_same_pictures(standin, login, folder):
    printed = CliRunner().invoke(dalle, ["push", str(folder), "hf:me/hearts"], catch_exceptions=False).stdout
    assert printed == f"{standin.url}/me/hearts\n"
    downloaded, local = (DalleMini.from_pretrained(name, "cpu", "fp32") for name in ("hf:me/hearts", folder))
    assert downloaded.source == {**local.source, "model": "hf:me/hearts"}
    assert downloaded.sampling == SAMPLING
    remote, expected = (one.generate("a cat", candidates=2, keep=1)[0] for one in (downloaded, local))
    assert (remote.seed, remote.score) == (expected.seed, expected.score)
    assert (remote.image_ids == expected.image_ids).all()


def test_downloaded_checkpoint_can_be_pushed_again(standin, login, folder):
    (folder / "MODEL_CARD.md").write_text("# hearts\n\nDraws hearts.\n")
    sharing.push_checkpoint(folder, "hf:me/hearts")
    sharing.push_checkpoint(find_checkpoint("hf:me/hearts"), "hf:you/hearts")
    first, second = (standin.repositories[name].files for name in ("me/hearts", "you/hearts"))
    assert first == second


def test_environment_variables_of_the_library_apply(standin, folder, tmp_path):
    put_into_repository(standin, folder)
    places = {"HF_ENDPOINT": standin.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "dalle_mini_impl", "info", "hf:me/hearts", "--json"]
    done = subprocess.run(
        command, env={**os.environ, **places}, capture_output=True, text=True, timeout=300, check=True
    )
    assert json.loads(done.stdout)["checkpoint"] == checkpoint.fingerprint(folder)
    assert len(list((tmp_path / "home").rglob("snapshots/*/transformer.safetensors"))) == 1


# --- downloading


def test_only_files_of_a_checkpoint_are_downloaded(standin, folder):
    for name in ("pytorch_model.bin", "optimizer.safetensors", "modeling.py", "README.md", "MODEL_CARD.md"):
        (folder / name).write_text(name)
    repository = put_into_repository(standin, folder)
    repository.files["old/transformer.safetensors"] = b"another"
    downloaded_folder = find_checkpoint("hf:me/hearts")
    names = {path.relative_to(downloaded_folder).as_posix() for path in downloaded_folder.rglob("*") if path.is_file()}
    assert names == {*PARTS, "README.md", "MODEL_CARD.md"}
    asked = {path.split("/resolve/")[1].split("/", 1)[1] for _, path in standin.requests if "/resolve/" in path}
    assert asked == names


def test_revision_after_the_at_sign_is_downloaded(standin, folder):
    repository = put_into_repository(standin, folder)
    (first,) = set(repository.revisions()[0]) - {"main"}
    (folder / "image_tokenizer.safetensors").unlink()
    checkpoint.save_part(folder, "image_tokenizer", make_image_tokenizer(seed=11), to_dict(IMAGE_TOKENIZER), {})
    repository.commit("second", {path.name: path.read_bytes() for path in folder.iterdir()})
    newest, older = (load_image_tokenizer(f"hf:me/hearts{at}")[1] for at in ("", f"@{first}"))
    assert newest == load_image_tokenizer(folder)[1] != older
    assert load_image_tokenizer("hf:me/hearts@main")[1] == newest


def test_repository_with_one_part_loads_that_part(standin, folder):
    for name in PARTS - {"image_tokenizer.safetensors"}:
        (folder / name).unlink()
    put_into_repository(standin, folder)
    assert ImageTokenizer.from_pretrained("hf:me/hearts").codebook_size == IMAGE_TOKENIZER.codebook_size
    with pytest.raises(UserError, match=r"has no transformer\.safetensors"):
        DalleMini.from_pretrained("hf:me/hearts", "cpu")


def test_offline_the_cache_is_used(standin, folder, monkeypatch):
    put_into_repository(standin, folder)
    downloaded_folder = find_checkpoint("hf:me/hearts")
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    library.close_session()
    before = len(standin.requests)
    assert find_checkpoint("hf:me/hearts") == downloaded_folder
    assert len(standin.requests) == before
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", False)
    standin.close()
    library.close_session()
    assert find_checkpoint("hf:me/hearts") == downloaded_folder


def test_offline_without_cache_is_refused_in_one_line(standin, folder, refused, monkeypatch):
    put_into_repository(standin, folder)
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    library.close_session()
    message = error_line(refused("info", "hf:me/hearts"))
    assert re.search(r"is not complete in .*, and HF_HUB_OFFLINE is set; download it once without$", message)
    assert standin.requests == []
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", False)
    standin.close()
    library.close_session()
    message = error_line(refused("info", "hf:me/hearts"))
    assert re.search(
        r"hf:me/hearts is not complete in .*, and http.* cannot be reached; check the connection$", message
    )


def test_incomplete_download_is_refused(standin, folder, monkeypatch):
    put_into_repository(standin, folder)
    (find_checkpoint("hf:me/hearts") / "transformer.safetensors").unlink()
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    library.close_session()
    with pytest.raises(UserError, match="is not complete in "):
        find_checkpoint("hf:me/hearts")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:me/harts", "hf:me/harts is not at .*, or it is private; check the name, or log in with: hf auth login"),
        ("hf:me/secret", "hf:me/secret is not at .*, or it is private"),
        ("hf:me/gated", "hf:me/gated is gated; request access on its page"),
        ("hf:me/hearts@v3", "hf:me/hearts@v3 has no such revision; name one of its branches, tags or commits"),
        ("hf:me/notes", r"hf:me/notes holds no checkpoint; expected one of text_tokenizer\.model, "),
        ("hf:hearts", "expected hf:USER/REPO or hf:USER/REPO@REVISION, got 'hf:hearts'; correct the name"),
        ("hf:", "expected hf:USER/REPO or hf:USER/REPO@REVISION, got 'hf:';"),
        ("hf:me/hearts@", "got 'hf:me/hearts@'"),
        ("hf:me/a..b", "hf:me/a..b: .* failed "),
    ],
)
def test_failed_download_is_refused_in_one_line(standin, folder, refused, name, message):
    put_into_repository(standin, folder)
    put_into_repository(standin, folder, "me/secret", private=True)
    put_into_repository(standin, folder, "me/gated", gated=True)
    standin.repositories["me/notes"] = Repository(commits=[("first", {"README.md": b"hi", "config.yaml": b"a: 1"})])
    assert re.search(message, error_line(refused("sample", "a cat", "--model", name)))


def test_private_repository_is_downloaded_with_a_login(standin, folder, login):
    put_into_repository(standin, folder, "me/secret", private=True)
    assert checkpoint.fingerprint(find_checkpoint("hf:me/secret")) == checkpoint.fingerprint(folder)


def test_missing_library_is_refused_naming_the_extra(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install -c constraints.txt '.[hub]'" in error_line(refused("info", "hf:me/hearts"))


def test_scorer_named_hf_is_one_of_transformers(standin, monkeypatch):
    names = []

    def load_scorer(name):
        names.append(name)
        return make_clip(), LetterTokenizer(), Preprocess(SIZE), 7

    monkeypatch.setitem(ADAPTERS, "hf", load_scorer)
    assert Scorer.from_pretrained("hf:me/hearts", "cpu").text_length == 7
    assert names == ["me/hearts"]
    assert standin.requests == []


def test_painting_uses_the_scorer_of_a_downloaded_checkpoint(standin, folder, tmp_path):
    put_into_repository(standin, folder)
    out = tmp_path / "fox.png"
    arguments = ["paint", "a cat", "--model", "hf:me/hearts", "--steps", "2", "--cuts", "3", "--out", str(out)]
    CliRunner().invoke(dalle, arguments, catch_exceptions=False)
    assert read_metadata(out)["scorers"] == ["hf:me/hearts"]


def test_model_that_a_picture_names_is_downloaded_only_if_named_by_the_user(standin, folder, refused, tmp_path):
    put_into_repository(standin, folder)
    result = DalleMini.from_pretrained("hf:me/hearts", "cpu", "fp32").generate("a cat", candidates=1)
    result.save(tmp_path)
    (picture,) = tmp_path.glob("*.png")
    before = len(standin.requests)
    error = error_line(refused("sample", "--from", picture, "--out", tmp_path / "repeated.png"))
    assert "was generated by hf:me/hearts, which does not ship with this program" in error
    assert error.endswith("add --model hf:me/hearts")
    assert len(standin.requests) == before
    command = ["sample", "--from", str(picture), "--out", str(tmp_path / "repeated.png"), "--model", "hf:me/hearts"]
    CliRunner().invoke(dalle, command, catch_exceptions=False)
    assert (tmp_path / "repeated.png").read_bytes() == picture.read_bytes()


# --- pushing


def test_push_sends_the_checkpoint_files_in_one_commit(standin, login, folder):
    (folder / ".DS_Store").write_text("hidden")
    url = sharing.push_checkpoint(folder, "hf:me/hearts")
    repository = standin.repositories["me/hearts"]
    assert url == f"{standin.url}/me/hearts"
    assert set(repository.files) == {*PARTS, "README.md"}
    assert all(repository.files[name] == (folder / name).read_bytes() for name in PARTS)
    assert [message for message, _ in repository.commits] == [f"Checkpoint {checkpoint.fingerprint(folder)}"]
    assert not repository.private


def test_private_and_message_options_of_push(standin, login, folder):
    command = ["push", str(folder), "hf:me/hearts", "--private", "--message", "Longer training"]
    CliRunner().invoke(dalle, command, catch_exceptions=False)
    repository = standin.repositories["me/hearts"]
    assert repository.private
    assert repository.commits[0][0] == "Longer training"


def test_push_deletes_files_of_the_previous_checkpoint(standin, login, folder):
    repository = put_into_repository(standin, folder)
    repository.files.update({"MODEL_CARD.md": b"old", "text_tokenizer.json": b"old", "notes.txt": b"mine"})
    (folder / "scorer.safetensors").unlink()
    sharing.push_checkpoint(folder, "hf:me/hearts")
    assert set(repository.files) == {*PARTS, "README.md", "notes.txt"} - {"scorer.safetensors"}
    assert len(repository.commits) == 2


def test_mixed_or_incomplete_checkpoint_is_not_sent(standin, login, folder, refused):
    whole = shutil.copytree(folder, folder.parent / "whole")
    (folder / "image_tokenizer.safetensors").unlink()
    checkpoint.save_part(folder, "image_tokenizer", make_image_tokenizer(seed=11), to_dict(IMAGE_TOKENIZER), {})
    assert "was trained with image_tokenizer" in error_line(refused("push", folder, "hf:me/hearts"))
    for name in PARTS - {"scorer.safetensors"}:
        content = (whole / name).read_bytes()
        (whole / name).unlink()
        assert name in error_line(refused("push", whole, "hf:me/hearts"))
        (whole / name).write_bytes(content)
    assert standin.requests == []


def test_other_files_and_pickles_are_not_sent(standin, login, folder):
    (folder / "model.pt").write_bytes(b"")
    (folder / "pictures").mkdir()
    with pytest.raises(UserError, match=r"also has model\.pt, pictures; expected nothing but config\.yaml, text_"):
        sharing.push_checkpoint(folder, "hf:me/hearts")
    (folder / "model.pt").unlink()
    (folder / "pictures").rmdir()
    (folder / "scorer.safetensors").write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(UserError, match=r"scorer\.safetensors is damaged or was not written by this package"):
        sharing.push_checkpoint(folder, "hf:me/hearts")
    assert standin.requests == []


def test_push_without_or_with_a_wrong_login_is_refused(standin, folder, monkeypatch):
    with pytest.raises(UserError, match=r"without a login; log in with: hf auth login, or set HF_TOKEN"):
        sharing.push_checkpoint(folder, "hf:me/hearts")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"hf:me/hearts: .* failed .*Invalid username or password"):
        sharing.push_checkpoint(folder, "hf:me/hearts")
    assert standin.repositories == {}


def test_push_that_the_hub_refuses_is_refused_in_one_line(standin, login, folder):
    standin.refusal = "You have no write access here"
    with pytest.raises(UserError, match=r" failed .*You have no write access here"):
        sharing.push_checkpoint(folder, "hf:you/hearts")
    standin.refusal = None
    put_into_repository(standin, folder)
    with pytest.raises(UserError, match="hf:me/hearts already exists and is public; make it private first"):
        sharing.push_checkpoint(folder, "hf:me/hearts", private=True)
    with pytest.raises(UserError, match="leave out @v2"):
        sharing.push_checkpoint(folder, "hf:me/hearts@v2")
    assert len(standin.repositories["me/hearts"].commits) == 1


def test_push_without_network_is_refused(standin, login, folder):
    standin.close()
    with pytest.raises(UserError, match=r"hf:me/hearts: http://127\.0\.0\.1\S* failed"):
        sharing.push_checkpoint(folder, "hf:me/hearts")


def test_push_of_an_unknown_model_is_refused(refused):
    assert "no model 'nowhere'" in error_line(refused("push", "nowhere", "hf:me/hearts"))


# --- cards


def header_of(text):
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


ABOUT = AboutConfig(
    licence="CC-BY-4.0",
    languages=("en", "no"),
    data=("hearts of my own",),
    quality=(Figure(what="hearts that look like hearts", value=0.75, command="dalle evaluate hearts"),),
)


def test_card_of_the_folder_gets_a_header(folder):
    (folder / "MODEL_CARD.md").write_text("# hearts\n\nDraws ❤.\n\n---\nmore\n---\n", encoding="utf-8")
    (folder / "README.md").write_text("another")
    save_settings(folder, SAMPLING, ABOUT)
    header, body = header_of(sharing.hub_card(folder, "hf:me/hearts"))
    assert header == {
        "library_name": "dalle-mini-impl",
        "pipeline_tag": "text-to-image",
        "tags": ["dall-e", "vq-vae", "clip"],
        "license": "cc-by-4.0",
        "language": ["en", "no"],
    }
    assert body == "\n# hearts\n\nDraws ❤.\n\n---\nmore\n---\n"


def test_existing_header_is_kept_and_updated(folder):
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [emoji, clip]\nthumbnail: a.png\n---\n# hearts\n")
    save_settings(folder, SAMPLING, ABOUT)
    header, body = header_of(sharing.hub_card(folder, "hf:me/hearts"))
    assert header["tags"] == ["emoji", "clip", "dall-e", "vq-vae"]
    assert (header["license"], header["thumbnail"]) == ("cc-by-4.0", "a.png")
    assert body == "\n# hearts\n"
    save_settings(folder, SAMPLING)
    assert header_of(sharing.hub_card(folder, "hf:me/hearts"))[0]["license"] == "mit"


def test_card_is_generated_where_there_is_none(folder):
    save_settings(folder, SAMPLING, ABOUT)
    header, body = header_of(sharing.hub_card(folder, "hf:me/hearts"))
    assert header["language"] == ["en", "no"]
    assert body.startswith("\n# model\n")
    for known in (
        "hearts of my own",
        "hearts that look like hearts: 0.75",
        "--model hf:me/hearts",
        checkpoint.fingerprint(folder),
    ):
        assert known in body
    save_settings(folder, SAMPLING)
    assert not {"license", "language"} & set(header_of(sharing.hub_card(folder, "hf:me/hearts"))[0])


@pytest.mark.parametrize("header", ["a: [", "only words", "tags: emoji", "a: \xff"])
def test_damaged_card_is_refused(folder, header):
    (folder / "MODEL_CARD.md").write_bytes(f"---\n{header}\n---\n# hearts\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"MODEL_CARD\.md is "):
        sharing.hub_card(folder, "hf:me/hearts")
