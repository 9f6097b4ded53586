"""Whole models of DALLE-pytorch become ours, without that package."""

from pathlib import Path

import foreign
import foreign_dalle
import pytest
import torch
from click.testing import CliRunner
from foreign import random_tensors
from foreign_dalle import IDS, SIDE, Kind, make_tensors

from dalle_mini_impl.checkpoint import read_part
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config import StreamConfig, TransformerConfig
from dalle_mini_impl.config_io import from_dict
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.stream import Stream
from dalle_mini_impl.transformer import build_transformer

VAE = random_tensors(foreign.dalle_pytorch_shapes(2, 0, hidden=11, embed=7, ids=IDS), gain=1.6)
VQGAN = random_tensors(foreign.vqgan_shapes(32, (1, 1, 1), (2,), z=11, embed=7, ids=IDS, blocks=1))
DVAE = [random_tensors(part) for part in foreign.openai_shapes(hidden=8, init=5, ids=IDS)]
PICTURE = [3, 60, 0, 17, 5, 5, 41, 8, 29]

KINDS = {
    "1.6.6": Kind(("full", "axial_row", "axial_col", "conv_like")),
    "1.6.6, no shift": Kind(nests=(3, 2), stable=True, tied=True),
    "before the cache": Kind(nests=(3, 3), sandwich=True),
    "the first": Kind(("conv_like", "full"), nests=(2, 2), rotary=False, axial="image_pos_emb.weights_"),
    "reversible": Kind(("axial_col", "full"), rotary=False, reversible=True, sandwich=True),
}


def content(kind=KINDS["1.6.6"], vae=VAE, **changes):
    """What is in a dalle.pt."""
    weights = {**{f"vae.{name}": value for name, value in vae.items()}, **make_tensors(kind)}
    return {"hparams": kind.hparams, "vae_params": None, "weights": weights, **changes}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments, code=0):
    """Run `dalle`, and give what it printed."""
    result = CliRunner().invoke(dalle, [*map(str, arguments)])
    if code == 0:
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output
    assert isinstance(result.exception, UserError), result.exception
    return str(result.exception)


def imported(stuff):
    torch.save(stuff, "dalle.pt")
    return run("import", "dalle-pytorch", "dalle.pt", "--out", "model")


def load(folder=Path("model")):
    part = read_part(folder, "transformer")
    stream = from_dict(StreamConfig, part.config["stream"])
    model = build_transformer(from_dict(TransformerConfig, part.config["transformer"]), stream)
    model.load_state_dict(part.tensors)
    return model.eval(), Stream(stream), part


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_computes_what_the_reference_does(kind):
    stuff = content(kind)
    if "weights_" in kind.axial:
        stuff["weights"]["logits_mask"] = torch.ones(1, 3, 5, dtype=torch.bool)
    imported(stuff)
    model, stream, _ = load()
    assert stream.config.bos_id == 0
    for caption in ([], [7, 3], [1, 2, 40, 4]):
        expected = foreign_dalle.logits(stuff["weights"], kind, caption, PICTURE)
        ids = stream.join(stream.prefix([caption]), torch.tensor(PICTURE).view(1, SIDE, SIDE))
        with torch.inference_mode():
            found = model.logits(model(ids))[0]
        assert expected.std() > 0.5
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
