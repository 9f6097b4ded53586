"""Whole models of DALLE-pytorch become ours, without that package."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import foreign_dalle_pytorch, foreign_image_tokenizers
from helpers.foreign_dalle_pytorch import IDS, KINDS, PICTURE, SIDE, TEXT_VOCAB, VAE, Kind, content
from helpers.foreign_image_tokenizers import random_tensors

from dalle_mini_impl import DalleMini
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.interop.whole import dalle_pytorch as dalle_pytorch_model
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

VQGAN = random_tensors(foreign_image_tokenizers.vqgan_shapes(32, (1, 1, 1), (2,), z=11, embed=7, ids=IDS, blocks=1))
DVAE = [random_tensors(part) for part in foreign_image_tokenizers.openai_shapes(hidden=8, init=5, ids=IDS)]


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
        expected = foreign_dalle_pytorch.logits(stuff["weights"], kind, caption, PICTURE)
        ids = stream.join(stream.prefix([caption]), torch.tensor(PICTURE).view(1, SIDE, SIDE))
        with torch.inference_mode():
            found = model.logits(model(ids))[0]
        assert expected.std() > 0.5
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("vae", "network", "factor"),
    [
        ({f"vae.{name}": value for name, value in VAE.items()}, "dalle-pytorch", 4),
        ({f"vae.model.{name}": value for name, value in {**VQGAN, "loss.x": torch.ones(2)}.items()}, "taming", 4),
        (
            {
                f"vae.{half}.{name}": value
                for half, part in zip(("enc", "dec"), DVAE, strict=True)
                for name, value in part.items()
            },
            "openai-dvae",
            8,
        ),
    ],
    ids=["DiscreteVAE", "VQGanVAE", "OpenAIDiscreteVAE"],
)
def test_each_image_tokenizer_is_found(vae, network, factor):
    stuff = content(vae={})
    stuff["weights"] |= vae
    output = imported(stuff)
    tokenizer, identity = load_image_tokenizer("model")
    assert tokenizer.config.network == network
    assert (tokenizer.config.grid, tokenizer.config.factor) == ((SIDE, SIDE), factor)
    mine = {value.flatten()[0].item() for value in tokenizer.state_dict().values()}
    assert mine <= {value.flatten()[0].item() for value in vae.values()}
    assert len(mine) > 10
    assert read_part(Path("model"), "transformer").trained_with == {
        "text_tokenizer": "unknown",
        "image_tokenizer": identity,
    }
    assert "61 ids, 4×4" in output


def test_a_discrete_vaes_normalization_is_taken_from_the_file_or_the_command():
    said = ((0.4, 0.3, 0.2, 0.0), (0.5, 0.6, 0.7, 1.0))
    imported(content(vae_params={"normalization": said}))
    run("import", "dalle-pytorch", "dalle.pt", "--out", "told", "--mean", 0.1, 0.2, 0.3)
    torch.save(content(vae_params={"normalization": None}), "none.pt")
    run("import", "dalle-pytorch", "none.pt", "--out", "none")
    for folder, mean, std in (
        ("model", (0.4, 0.3, 0.2), (0.5, 0.6, 0.7)),
        ("told", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
        ("none", (0.0,) * 3, (1.0,) * 3),
    ):
        foreign_config = load_image_tokenizer(folder)[0].config.imported
        assert (foreign_config.mean, foreign_config.std) == (mean, std)


def test_half_precision_is_kept_but_for_what_is_scaled():
    stuff = content()
    stuff["weights"] = {name: value.half() for name, value in stuff["weights"].items()}
    for layer in range(4):
        stuff["weights"][f"transformer.layers.layers.{layer}.0.scale"] *= 1e-6
    imported(stuff)
    model, _, part = load()
    floats = {name for name, value in part.tensors.items() if value.dtype == torch.float32}
    scaled = ("attention.out", "mlp.down")
    assert floats == {"table", *(name for name in part.tensors if name.split(".", 2)[-1].startswith(scaled))}
    assert {value.dtype for name, value in part.tensors.items() if name not in floats} == {torch.float16}
    ratio = model.blocks[0].attention.out.weight.abs().mean() / model.blocks[0].mlp.down.weight.abs().mean()
    assert 1e-7 < ratio < 1e-5


# --- using it


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"!": 0, "a": 1, "red": 2, "heart": 40}, "unk_token": "!"},
}  # fmt: skip


@pytest.fixture
def words():
    pytest.importorskip("tokenizers")
    Path("words.json").write_text(json.dumps(TOKENIZER))
    return "words.json"


def test_it_samples_and_completes(words):
    torch.save(content(), "dalle.pt")
    run("import", "dalle-pytorch", "dalle.pt", "--text-tokenizer", words, "--out", "model")
    model = DalleMini.from_pretrained("model", "cpu")
    assert model.encode("A red heart") == [1, 2, 40]
    # Id 0 is padding wherever it stands.
    assert model.stream.prefix([model.encode("red ! heart")]).tolist() == [
        [0, 2, TEXT_VOCAB + 1, 40, TEXT_VOCAB + 3, TEXT_VOCAB + 4]
    ]

    result = model.generate("a red heart", candidates=5, keep=3, seed=1)
    assert [candidate.image.size for candidate in result] == [(16, 16)] * 3
    likelihoods = [model.log_likelihood("a red heart", one.image_ids[None]).sum().item() for one in result]
    assert likelihoods == sorted(likelihoods, reverse=True)
    done = model.complete(result[0].image, "a red heart", rows=1, candidates=2, keep=1)
    kept = model.image_tokenizer.encode(to_pixels([result[0].image], 16))[0, 0]
    assert torch.equal(done[0].image_ids[0], kept)
    run("sample", "a red heart", "--model", "model", "--candidates", 3, "--keep", 2, "--out", "grid.png")
    assert Path("grid.png").stat().st_size > 100


def test_guidance_is_off_unless_asked_for():
    imported(content())
    assert load_settings(Path("model")).sampling.guidance == 1.0


def test_a_text_tokenizer_can_come_before_or_afterwards(words):
    torch.save(content(), "dalle.pt")
    output = run("import", "dalle-pytorch", "dalle.pt", "--out", "after")
    assert "after has no text tokenizer yet, without which it can read no captions" in output
    with pytest.raises(UserError, match=r"cannot read text tokenizer after/text_tokenizer\.model"):
        DalleMini.from_pretrained("after", "cpu")
    for folder in ("before", "after"):
        run("import", "text-tokenizer", words, "--out", folder)
    output = run("import", "dalle-pytorch", "dalle.pt", "--out", "before")
    assert "no text tokenizer" not in output
    first, second = (DalleMini.from_pretrained(folder, "cpu") for folder in ("before", "after"))
    assert first.encode("red") == second.encode("red") == [2]
    assert read_part(Path("before"), "transformer").trained_with["text_tokenizer"] == first.text_tokenizer.identity


# --- what is refused


def changed(name, value):
    """A dalle.pt with another tensor; without it, if that is None."""
    stuff = content()
    stuff["weights"][name] = value
    if value is None:
        del stuff["weights"][name]
    return stuff


LAST = "transformer.layers.layers.3.1.fn.fn.fn.fn.net.3.weight"


def with_settings(**changes):
    return content(hparams={**KINDS["1.6.6"].hparams, **changes})


@pytest.mark.parametrize(
    ("stuff", "message"),
    [
        (lambda: {"weights": {"a": torch.ones(2)}}, "dalle.pt has no hparams, which tell the shape of the model"),
        (lambda: content(weights="see the wiki"), "dalle.pt has no weights: DeepSpeed kept them apart; run the ze"),
        (lambda: changed(LAST, None), rf"does not have the \d+ tensors expected: 1 missing \({LAST}\)"),
        (lambda: changed(LAST, torch.ones(2)), rf"1 of another shape \({LAST} is \(2,\), expected \(20, 80\)\)"),
        (lambda: changed("text_emb.more", torch.ones(2)), r"1 not known \(text_emb.more\)"),
        (lambda: changed("to_logits.1.weight", None), "no tensor whose name ends with to_logits.1.weight"),
        (lambda: content(vae={}), "dalle.pt has no image tokenizer: expected one of DiscreteVAE, VQGanVAE"),
        (lambda: with_settings(depth="4"), "depth in hparams is '4', expected a"),
        (lambda: with_settings(depth=3), "13 not known"),
        (lambda: content(hparams={"dim": 20}), "depth in hparams is None"),
        (lambda: with_settings(attn_types=("full", "sparse")), "attn_types 'sparse'; onl"),
        (lambda: with_settings(attn_types="mlp"), "attn_types 'mlp'; only full, axial_"),
        (lambda: with_settings(heads=6, dim_head=7), "pos_emb is"),
    ],
)
def test_what_cannot_be_imported_is_told(stuff, message):
    torch.save(stuff(), "dalle.pt")
    with pytest.raises(UserError, match=message):
        dalle_pytorch_model.load("dalle.pt")


def test_without_attention_or_feed_forward_layers_it_is_no_dalle():
    for last in ("to_qkv.weight", "net.0.weight"):
        stuff = content()
        for name in [name for name in stuff["weights"] if name.endswith(last)]:
            del stuff["weights"][name]
        torch.save(stuff, "dalle.pt")
        with pytest.raises(UserError, match=rf"dalle.pt has no transformer\.layers\.….{last}"):
            dalle_pytorch_model.load("dalle.pt")


def test_deepspeeds_weights_come_from_a_file_of_their_own():
    stuff = content()
    Path("dalle-ds-cp").mkdir()
    with pytest.raises(UserError, match="dalle-ds-cp is a folder, as DeepSpeed writes it; run the zero_to_fp32"):
        dalle_pytorch_model.load("dalle-ds-cp")
    torch.save(stuff["weights"], "pytorch_model.bin")
    torch.save({**stuff, "weights": "see the wiki"}, "dalle-ds-cp/auxiliary.pt")
    torch.save(stuff, "dalle.pt")
    run("import", "dalle-pytorch", "dalle-ds-cp/auxiliary.pt", "--weights", "pytorch_model.bin", "--out", "apart")
    run("import", "dalle-pytorch", "dalle.pt", "--out", "whole")
    assert len({read_part(Path(folder), "transformer").identity for folder in ("apart", "whole")}) == 1


def test_numbers_that_our_transformer_cannot_have_are_refused(monkeypatch):
    for name, value, message in (("SIZE", 13, "multiple of 2"), ("DIM", 22, "must be a multiple of 4")):
        with monkeypatch.context() as patch:
            patch.setattr(foreign_dalle_pytorch, name, value)
            torch.save(content(Kind()), "dalle.pt")
        with pytest.raises(UserError, match=message):
            dalle_pytorch_model.load("dalle.pt")


def test_a_text_tokenizer_with_too_many_ids_is_refused():
    pytest.importorskip("tokenizers")
    vocab = {f"w{number}": number for number in range(TEXT_VOCAB + 1)}
    Path("words.json").write_text(
        json.dumps({**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": {"!": 0, **vocab}}})
    )
    torch.save(content(), "dalle.pt")
    arguments = ("import", "dalle-pytorch", "dalle.pt", "--text-tokenizer", "words.json", "--out", "model")
    assert f"the text tokenizer has {TEXT_VOCAB + 2} ids, the transformer {TEXT_VOCAB}" in run(*arguments, code=2)
    assert not Path("model").exists()


def test_parts_that_are_there_are_kept():
    imported(content())
    assert "transformer.safetensors is there already" in run(
        "import", "dalle-pytorch", "dalle.pt", "--out", "model", code=2
    ).replace("image_tokenizer", "transformer")
