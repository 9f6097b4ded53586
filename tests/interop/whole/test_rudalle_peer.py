"""The real ruDALL-E with random weights, beside what is imported from it; `make peers` installs it."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers.foreign_examples import build_imported
from helpers.foreign_tensors import random_gpt_tensors

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.whole import rudalle
from dalle_mini_impl.sampling.generate import Prompt, generate


@pytest.fixture
def dalle_model_class(monkeypatch):
    """The class of the package's transformer, imported without what the rest of the package imports."""
    spec = importlib.util.find_spec("rudalle")
    if spec is None or spec.origin is None:
        pytest.skip("rudalle is not installed")
    for name in ("rudalle", "rudalle.dalle"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(spec.origin).parent.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    return importlib.import_module("rudalle.dalle.model").DalleModel


@pytest.mark.parametrize("is_bool_mask", [True, False])
@pytest.mark.parametrize("version", [2, 3])
def test_logits_and_greedy_ids_match_rudalle(dalle_model_class, version, is_bool_mask):
    original = dalle_model_class(
        "cpu",
        num_layers=6,
        vocab_size=37,
        hidden_size=22,
        num_attention_heads=2,
        embedding_dropout_prob=0.1,
        attention_dropout_prob=0.1,
        output_dropout_prob=0.1,
        text_seq_length=7,
        image_tokens_per_dim=13,
        image_vocab_size=29,
        cogview_sandwich_layernorm=True,
        cogview_pb_relax=True,
        is_bool_mask=is_bool_mask,
        hf_version=f"v{version}",
    ).eval()
    shapes = {name: tuple(value.shape) for name, value in original.named_parameters()}
    original.load_state_dict({**original.state_dict(), **random_gpt_tensors(shapes)})
    torch.save(original.state_dict(), "pytorch_model.bin")
    transformer, stream = build_imported(rudalle.load("pytorch_model.bin", 2))

    image_ids = torch.randint(29, (1, 13, 13), generator=torch.Generator().manual_seed(1))
    caption = [2, 11, 5, 3]
    text = torch.tensor([[*caption, 0, 0, 0]])
    size = 7 + 13 * 13
    mask = torch.ones(1, 1, size, size).tril()
    with torch.no_grad():
        expected, _ = original(torch.cat([text, image_ids.flatten(1)], 1), mask)
        logits = transformer.logits(transformer(stream.join(stream.prefix([caption]), image_ids)))
    torch.testing.assert_close(logits[:, : expected.shape[1]], expected, atol=1e-4, rtol=0)

    greedy = SamplingConfig(temperature=0, guidance=1)
    sampled = generate(transformer, stream, Prompt(caption, []), [1], greedy)
    row, cache = text, None
    for _ in range(40):
        with torch.no_grad():
            logits, cache = original(row, mask, use_cache=True, cache=cache)
        row = torch.cat([row, logits[:, -1, 37:].argmax(-1, keepdim=True)], 1)
    assert torch.equal(sampled.image_ids.flatten()[:40], row[0, 7:])
    assert len(row[0, 7:].unique()) > 5
