"""An imported DALLE of DALLE-pytorch computes what the slow reference computes; files that do not fit are refused."""

from pathlib import Path

import pytest
import torch
from helpers import foreign_dalle_pytorch
from helpers.foreign_dalle_pytorch import (
    N_IDS,
    OPTIONS,
    PICTURE,
    SIDE,
    TEXT_VOCAB,
    VAE,
    DalleOptions,
    dalle_file_content,
    dalle_logits,
)
from helpers.foreign_openai_dvae import dvae_shapes
from helpers.foreign_tensors import random_tensors
from helpers.foreign_texts import write_word_level_json
from helpers.foreign_vqgan import vqgan_shapes

from dalle_mini_impl import DalleMini, ImageTokenizer
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.checkpoint.settings import load_settings
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.interop.whole import dalle_pytorch
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

MODEL = Path("model")
VQGAN = random_tensors(vqgan_shapes(32, (1, 1, 1), (2,), z_channels=11, embed_dim=7, n_ids=N_IDS, blocks=1))
ENCODER, DECODER = (random_tensors(shapes) for shapes in dvae_shapes(hidden=8, init=5, n_ids=N_IDS))


@pytest.fixture
def import_content(run):
    """Save the content of a dalle.pt, import it into the folder `model`, and return what was printed."""

    def import_content(content):
        torch.save(content, "dalle.pt")
        return run("import", "dalle-pytorch", "dalle.pt", "--out", MODEL)

    return import_content


def read_transformer():
    """Transformer and stream of the folder `model`, which has no text tokenizer."""
    part = read_part(MODEL, "transformer")
    stream = from_dict(StreamConfig, part.config["stream"])
    transformer = build_transformer(from_dict(TransformerConfig, part.config["transformer"]), stream)
    transformer.load_state_dict(part.tensors)
    return transformer.eval(), Stream(stream)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_match_the_reference_for_files_of_all_versions(import_content, options):
    content = dalle_file_content(options)
    if "weights_" in options.axial_prefix:  # early versions stored this constant
        content["weights"]["logits_mask"] = torch.ones(1, 3, 5, dtype=torch.bool)
    import_content(content)
    transformer, stream = read_transformer()
    assert stream.config.bos_id == 0
    for caption in ([], [7, 3], [1, 2, 40, 4]):
        expected = dalle_logits(content["weights"], options, caption, PICTURE)
        ids = stream.join(stream.prefix([caption]), torch.tensor(PICTURE).view(1, SIDE, SIDE))
        with torch.inference_mode():
            logits = transformer.logits(transformer(ids))[0]
        assert expected.std() > 0.5
        predicting = slice(-1 if options.early_rotary_table else None)
        torch.testing.assert_close(logits.double()[predicting], expected[predicting], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("vae_weights", "network", "factor"),
    [
        ({f"vae.{name}": value for name, value in VAE.items()}, "dalle-pytorch", 4),
        ({f"vae.model.{name}": value for name, value in {**VQGAN, "loss.x": torch.ones(2)}.items()}, "taming", 4),
        (
            {
                **{f"vae.enc.{name}": value for name, value in ENCODER.items()},
                **{f"vae.dec.{name}": value for name, value in DECODER.items()},
            },
            "openai-dvae",
            8,
        ),
    ],
    ids=["DiscreteVAE", "VQGanVAE", "OpenAIDiscreteVAE"],
)
def test_every_class_of_image_tokenizer_is_recognised(import_content, vae_weights, network, factor):
    content = dalle_file_content(vae={})
    content["weights"] |= vae_weights
    printed = import_content(content)
    tokenizer = ImageTokenizer.from_pretrained(MODEL)
    assert tokenizer.config.network == network
    assert (tokenizer.config.grid, tokenizer.config.factor) == ((SIDE, SIDE), factor)
    first_numbers = {value.flatten()[0].item() for value in tokenizer.state_dict().values()}
    assert first_numbers <= {value.flatten()[0].item() for value in vae_weights.values()}
    assert len(first_numbers) > 10
    assert read_part(MODEL, "transformer").trained_with == {
        "text_tokenizer": "unknown",
        "image_tokenizer": read_part(MODEL, "image_tokenizer").identity,
    }
    assert "61 ids, 4×4" in printed


def test_normalization_comes_from_the_options_or_the_file(run, import_content):
    stored = ((0.4, 0.3, 0.2, 0.0), (0.5, 0.6, 0.7, 1.0))
    import_content(dalle_file_content(vae_params={"normalization": stored}))
    run("import", "dalle-pytorch", "dalle.pt", "--out", "option", "--mean", 0.1, 0.2, 0.3)
    torch.save(dalle_file_content(vae_params={"normalization": None}), "none.pt")
    run("import", "dalle-pytorch", "none.pt", "--out", "none")
    for folder, mean, std in (
        ("model", (0.4, 0.3, 0.2), (0.5, 0.6, 0.7)),
        ("option", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
        ("none", (0.0,) * 3, (1.0,) * 3),
    ):
        config = ImageTokenizer.from_pretrained(folder).config.imported
        assert (config.mean, config.std) == (mean, std)


def test_half_precision_is_kept_except_for_scaled_tensors(import_content):
    content = dalle_file_content()
    content["weights"] = {name: value.half() for name, value in content["weights"].items()}
    for layer in range(4):
        content["weights"][f"transformer.layers.layers.{layer}.0.scale"] *= 1e-6
    import_content(content)
    tensors = read_part(MODEL, "transformer").tensors
    in_float32 = {name for name, value in tensors.items() if value.dtype == torch.float32}
    scaled = ("attention.out", "mlp.down")
    assert in_float32 == {"table", *(name for name in tensors if name.split(".", 2)[-1].startswith(scaled))}
    assert {value.dtype for name, value in tensors.items() if name not in in_float32} == {torch.float16}
    transformer, _ = read_transformer()
    block = transformer.blocks[0]
    ratio = block.attention.out.weight.abs().mean() / block.mlp.down.weight.abs().mean()
    assert 1e-7 < ratio < 1e-5


# --- using the imported model


@pytest.fixture
def text_tokenizer_file():
    pytest.importorskip("tokenizers")
    return write_word_level_json()


def test_imported_model_samples_ranks_and_completes(run, text_tokenizer_file):
    torch.save(dalle_file_content(), "dalle.pt")
    run("import", "dalle-pytorch", "dalle.pt", "--text-tokenizer", text_tokenizer_file, "--out", "model")
    model = DalleMini.from_pretrained("model", "cpu")
    assert model.encode("A red heart") == [1, 2, 40]
    # Text id 0 is replaced by the padding of its position, also inside a caption
    assert model.stream.prefix([model.encode("red ! heart")]).tolist() == [
        [0, 2, TEXT_VOCAB + 1, 40, TEXT_VOCAB + 3, TEXT_VOCAB + 4]
    ]

    result = model.generate("a red heart", candidates=5, keep=3, seed=1)
    assert [candidate.image.size for candidate in result] == [(16, 16)] * 3
    likelihoods = [model.log_likelihood("a red heart", one.image_ids[None]).sum().item() for one in result]
    assert likelihoods == sorted(likelihoods, reverse=True)
    completed = model.complete(result[0].image, "a red heart", rows=1, candidates=2, keep=1)
    first_row = model.image_tokenizer.encode(to_pixels([result[0].image], 16))[0, 0]
    assert torch.equal(completed[0].image_ids[0], first_row)
    run("sample", "a red heart", "--model", "model", "--candidates", 3, "--keep", 2, "--out", "grid.png")
    assert Path("grid.png").stat().st_size > 100


def test_guidance_is_off_by_default(import_content):
    import_content(dalle_file_content())
    assert load_settings(MODEL).sampling.guidance == 1.0


def test_text_tokenizer_can_be_imported_before_or_after(run, text_tokenizer_file):
    torch.save(dalle_file_content(), "dalle.pt")
    printed = run("import", "dalle-pytorch", "dalle.pt", "--out", "after")
    assert (
        "warning: after has no text tokenizer, so it cannot read captions; add the one it was trained with" in printed
    )
    with pytest.raises(UserError, match=r"in after, got neither; .*: dalle import text-tokenizer FILE --out after$"):
        DalleMini.from_pretrained("after", "cpu")
    for folder in ("before", "after"):
        run("import", "text-tokenizer", text_tokenizer_file, "--out", folder)
    printed = run("import", "dalle-pytorch", "dalle.pt", "--out", "before")
    assert "no text tokenizer" not in printed
    before, after = (DalleMini.from_pretrained(folder, "cpu") for folder in ("before", "after"))
    assert before.encode("red") == after.encode("red") == [2]
    assert read_part(Path("before"), "transformer").trained_with["text_tokenizer"] == before.text_tokenizer.identity


# --- refused files


LAST_WEIGHT = "transformer.layers.layers.3.1.fn.fn.fn.fn.net.3.weight"


def content_with_tensor(name, value):
    """A dalle.pt with one other tensor; without it if the value is None."""
    content = dalle_file_content()
    content["weights"][name] = value
    if value is None:
        del content["weights"][name]
    return content


def content_with_hparams(**changes):
    return dalle_file_content(hparams={**OPTIONS["1.6.6"].hparams, **changes})


@pytest.mark.parametrize(
    ("make_content", "message"),
    [
        (lambda: {"weights": {"a": torch.ones(2)}}, "expected hparams, which determine .*, got none in dalle.pt; give"),
        (
            lambda: dalle_file_content(weights="see the wiki"),
            "expected weights, got none in dalle.pt: DeepSpeed stored them apart; run the zero_to_fp32.py",
        ),
        (
            lambda: content_with_tensor(LAST_WEIGHT, None),
            rf"expected the \d+ tensors of this format, got dalle.pt with 1 missing \({LAST_WEIGHT}\)",
        ),
        (
            lambda: content_with_tensor(LAST_WEIGHT, torch.ones(2)),
            rf"1 of another shape \({LAST_WEIGHT} is \(2,\), expected \(20, 80\)\)",
        ),
        (lambda: content_with_tensor("text_emb.more", torch.ones(2)), r"with 1 unknown \(text_emb.more\)"),
        (
            lambda: content_with_tensor("to_logits.1.weight", None),
            "expected a tensor whose name ends with to_logits.1.weight, got",
        ),
        (
            lambda: dalle_file_content(vae={}),
            "expected the tensors of a DiscreteVAE, VQGanVAE or OpenAIDiscreteVAE, .*, got none in dalle.pt",
        ),
        (
            lambda: content_with_hparams(depth="4"),
            "expected depth in hparams to be a whole number of 1 or more, got '4' in dalle.pt; give",
        ),
        (lambda: content_with_hparams(depth=3), "with 13 unknown"),
        (lambda: dalle_file_content(hparams={"dim": 20}), "expected depth in hparams .*, got None in"),
        (
            lambda: content_with_hparams(attn_types=("full", "sparse")),
            "expected attn_types among full, axial_row, axial_col, conv_like, got 'sparse' in dalle.pt; such a model",
        ),
        (lambda: content_with_hparams(attn_types="mlp"), "expected attn_types among full, axial_.*, got 'mlp'"),
        (lambda: content_with_hparams(attn_types=3), "expected attn_types to be a list of names, got 3 in dalle.pt"),
        (lambda: dalle_file_content(version=[1]), r"expected a version of DALLE-pytorch .*, got \[1\] in dalle.pt"),
        (lambda: content_with_hparams(heads=6, dim_head=7), "of another shape .*pos_emb is"),
    ],
)
def test_file_that_cannot_be_imported_is_refused(make_content, message):
    torch.save(make_content(), "dalle.pt")
    with pytest.raises(UserError, match=message):
        dalle_pytorch.load("dalle.pt")


@pytest.mark.parametrize("ending", ["to_qkv.weight", "net.0.weight"])
def test_file_without_attention_or_feed_forward_layers_is_refused(ending):
    content = dalle_file_content()
    content["weights"] = {name: value for name, value in content["weights"].items() if not name.endswith(ending)}
    torch.save(content, "dalle.pt")
    with pytest.raises(UserError, match=rf"expected a tensor transformer\.layers\.….{ending}, got none in dalle.pt"):
        dalle_pytorch.load("dalle.pt")


def test_deepspeed_weights_are_read_from_a_file_of_their_own(run):
    content = dalle_file_content()
    Path("dalle-ds-cp").mkdir()
    message = "expected a file, got dalle-ds-cp, a folder as DeepSpeed writes it; run the zero_to_fp32"
    with pytest.raises(UserError, match=message):
        dalle_pytorch.load("dalle-ds-cp")
    torch.save(content["weights"], "pytorch_model.bin")
    torch.save({**content, "weights": "see the wiki"}, "dalle-ds-cp/auxiliary.pt")
    torch.save(content, "dalle.pt")
    run("import", "dalle-pytorch", "dalle-ds-cp/auxiliary.pt", "--weights", "pytorch_model.bin", "--out", "two-files")
    run("import", "dalle-pytorch", "dalle.pt", "--out", "one-file")
    identities = {read_part(Path(folder), "transformer").identity for folder in ("two-files", "one-file")}
    assert len(identities) == 1


@pytest.mark.parametrize(
    ("constant", "value", "message"),
    [("HEAD_DIM", 13, "multiple of 2"), ("WIDTH", 22, "to be a multiple of 4")],
)
def test_sizes_that_the_transformer_cannot_have_are_refused(monkeypatch, constant, value, message):
    with monkeypatch.context() as patch:
        patch.setattr(foreign_dalle_pytorch, constant, value)
        torch.save(dalle_file_content(DalleOptions()), "dalle.pt")
    with pytest.raises(UserError, match=message):
        dalle_pytorch.load("dalle.pt")


def test_text_tokenizer_with_too_many_ids_is_refused(run):
    pytest.importorskip("tokenizers")
    path = write_word_level_json(**{f"w{number}": number for number in range(TEXT_VOCAB + 1)})
    torch.save(dalle_file_content(), "dalle.pt")
    message = run("import", "dalle-pytorch", "dalle.pt", "--text-tokenizer", path, "--out", "model", code=1)
    assert message == (
        f"expected a text tokenizer with at most the transformer's {TEXT_VOCAB} ids, got {TEXT_VOCAB + 2}; "
        f"use the one it was trained with"
    )
    assert not MODEL.exists()


@pytest.mark.parametrize("part", ["image_tokenizer", "transformer"])
def test_existing_parts_are_not_replaced(run, import_content, part):
    import_content(dalle_file_content())
    for path in MODEL.glob("*.safetensors"):
        if path.stem != part:
            path.unlink()
    message = run("import", "dalle-pytorch", "dalle.pt", "--out", MODEL, code=1)
    assert message.startswith(f"expected a folder without {part}.safetensors, got model/{part}.safetensors; choose")
