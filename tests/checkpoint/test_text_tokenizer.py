"""Checkpoint folders with an imported text tokenizer: they generate, and have one text tokenizer only."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from helpers.foreign_texts import write_text
from helpers.foreign_yttm import SMALL_MODEL
from helpers.models import IMAGE_TOKENIZER, SAMPLING, TRANSFORMER, make_image_tokenizer, randomise

from dalle_mini_impl import DalleMini
from dalle_mini_impl.checkpoint.find import load_text_tokenizer
from dalle_mini_impl.checkpoint.parts import fingerprint, save_part
from dalle_mini_impl.checkpoint.settings import save_settings
from dalle_mini_impl.checkpoint.text_tokenizer import add_text_tokenizer, save_text_tokenizer
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.interop.text.import_text_tokenizer import import_text_tokenizer
from dalle_mini_impl.model.build import build_transformer, load_transformer
from dalle_mini_impl.text.json_tokenizer import JsonTokenizer
from dalle_mini_impl.util.errors import UserError

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def imported_folder(tmp_path_factory):
    """A checkpoint folder with a text tokenizer of YouTokenToMe. Tests must not change it."""
    folder = tmp_path_factory.mktemp("imported")
    model = folder / "model"
    text = import_text_tokenizer(write_text(folder / "bpe.model", SMALL_MODEL))
    save_text_tokenizer(model, text)
    image_identity = save_part(model, "image_tokenizer", make_image_tokenizer(), to_dict(IMAGE_TOKENIZER), {})
    stream = StreamConfig(text_length=7, text_vocab=text.vocab_size, grid=(3, 5), image_vocab=61, bos_id=0, pad_id=0)
    transformer = randomise(build_transformer(TRANSFORMER, stream), 3)
    config = {"stream": to_dict(stream), "transformer": to_dict(TRANSFORMER)}
    trained_with = {"text_tokenizer": text.identity, "image_tokenizer": image_identity}
    save_part(model, "transformer", transformer, config, trained_with)
    save_settings(model, SAMPLING)
    return model


@pytest.fixture
def another_tokenizer(tmp_path):
    """One that adds EOS to captions, so that its identity differs."""
    return import_text_tokenizer(write_text(tmp_path / "bpe.model", SMALL_MODEL), eos=True)


def test_model_with_an_imported_text_tokenizer_generates(imported_folder):
    model = DalleMini.from_pretrained(imported_folder, "cpu")
    assert isinstance(model.text_tokenizer, JsonTokenizer)
    result = model.generate("abc d", candidates=3, keep=2, seed=1)
    assert len(result) == 2
    ids = torch.zeros(1, 3, 5, dtype=torch.int64)
    assert not torch.equal(model.log_likelihood("abc", ids), model.log_likelihood("bcd", ids))
    with pytest.warns(UserWarning, match="cut off: 'd'"):
        assert len(model.encode("d d d d")) == 7
    assert fingerprint(imported_folder) == result.settings["checkpoint"]


def test_info_describes_an_imported_text_tokenizer(imported_folder):
    result = CliRunner().invoke(dalle, ["info", str(imported_folder), "--json"])
    info = json.loads(result.stdout)
    identity = load_text_tokenizer(imported_folder).identity
    assert info["text_tokenizer"] == {"identity": identity, "vocab_size": 15, "megabytes": 0.0}
    assert info["transformer"]["trained_with"]["text_tokenizer"] == identity


def test_transformer_refuses_another_text_tokenizer(imported_folder, another_tokenizer, tmp_path):
    folder = shutil.copytree(imported_folder, tmp_path / "model")
    (folder / "text_tokenizer.json").unlink()
    save_text_tokenizer(folder, another_tokenizer)
    with pytest.raises(UserError, match="was trained with text_tokenizer"):
        load_transformer(folder)


def test_folder_has_one_text_tokenizer(imported_folder, another_tokenizer, tiny_model, tmp_path):
    folder = shutil.copytree(imported_folder, tmp_path / "model")
    tokenizer = load_text_tokenizer(folder)
    save_text_tokenizer(folder, tokenizer)  # the same again is accepted
    existing = rf"text_tokenizer\.json is text tokenizer {tokenizer.identity}"
    with pytest.raises(UserError, match=f"{existing}, but the imported"):
        save_text_tokenizer(folder, another_tokenizer)
    sentencepiece_model = tiny_model / "text_tokenizer.model"
    with pytest.raises(UserError, match=f"{existing}, but the config"):
        add_text_tokenizer(folder, sentencepiece_model)  # as training does
    with pytest.raises(UserError, match=r"text_tokenizer\.model is text tokenizer"):
        save_text_tokenizer(shutil.copytree(tiny_model, tmp_path / "trained"), another_tokenizer)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        add_text_tokenizer(tmp_path / "new", folder / "text_tokenizer.json")
    shutil.copy(sentencepiece_model, folder)
    with pytest.raises(
        UserError, match=r"expected one text tokenizer, got .* and text_tokenizer\.json; remove the one"
    ):
        load_text_tokenizer(folder)
