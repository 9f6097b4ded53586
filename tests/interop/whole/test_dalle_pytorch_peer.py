"""Whole models of the real dalle-pytorch, random, beside what becomes of them; `make peers` installs it."""

import importlib.util

import pytest
import torch
from click.testing import CliRunner

from dalle_mini_impl.bench.peers import import_dalle_pytorch
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.cli import dalle as command
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import Prompt, generate

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dalle_pytorch") is None, reason="dalle-pytorch is not installed"
)

VAE = {"image_size": 32, "num_layers": 3, "num_tokens": 61, "codebook_dim": 7, "hidden_dim": 11}
SHAPE = {"num_text_tokens": 41, "text_seq_len": 5, "dim": 20, "depth": 4, "heads": 3, "dim_head": 14}
"""3 × 14 is not 20, and 2 of 14 channels are not turned."""
GRID = (4, 4)
CAPTION = [7, 3, 11]

OPTIONS = {
    "plain": {},
    "learned positions": {"rotary_emb": False},
    "no shift": {"shift_tokens": False},
    "sandwich": {"sandwich_norm": True},
    "stable": {"stable": True},
    "reversible": {"reversible": True},
    "shared layers": {"shared_attn_ids": (0, 1, 0, 1), "shared_ff_ids": (0, 0, 1)},
    "shared embeddings": {"share_input_output_emb": True},
    "rows and columns": {"attn_types": ("full", "axial_row", "axial_col")},
    "convolutional": {"attn_types": ("conv_like", "full")},
    "for inference": {"attn_types": ("axial_row", "axial_col"), "optimize_for_inference": True},
    "all at once": {"rotary_emb": False, "sandwich_norm": True, "stable": True, "reversible": True,
                    "share_input_output_emb": True, "shared_ff_ids": (0, 1),
                    "attn_types": ("full", "axial_row", "axial_col", "conv_like")},
    "all at once, turned": {"sandwich_norm": True, "stable": True, "reversible": True, "shift_tokens": False,
                            "share_input_output_emb": True, "shared_attn_ids": (0, 1, 2, 0), "dim": 22,
                            "attn_types": ("axial_col", "conv_like", "full")},
}  # fmt: skip


def make_dalle(seed=0, **options):
    """A DALLE in which every tensor matters."""
    package = import_dalle_pytorch()
    model = package.DALLE(vae=package.DiscreteVAE(**VAE), **{**SHAPE, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("scale") or ((".norm" in name or name.startswith("to_logits.0")) and "weight" in name):
                value.copy_(1 + 0.3 * noise)
            elif value.ndim > 1:
                value.copy_(noise * (0.7 if "emb" in name and "linear" not in name else 1.5 * value.shape[1] ** -0.5))
            else:
                value.copy_(0.3 * noise)
    return model.eval()


def save(model, path, **options):
    hparams = {**SHAPE, "loss_img_weight": 7, "attn_dropout": 0.0, "ff_dropout": 0.0, **options}
    content = {"hparams": hparams, "vae_params": VAE, "vae_class_name": "DiscreteVAE", "weights": model.state_dict()}
    torch.save({**content, "epoch": 3, "version": "1.6.6", "opt_state": {"state": {}}}, path)


def run(*arguments):
    result = CliRunner().invoke(command, [*map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def load(folder):
    """The transformer of a folder that has no text tokenizer."""
    part = read_part(folder, "transformer")
    stream = from_dict(StreamConfig, part.config["stream"])
    model = build_transformer(from_dict(TransformerConfig, part.config["transformer"]), stream)
    model.load_state_dict(part.tensors)
    return model.eval(), Stream(stream)


def text_of(captions):
    return torch.tensor([caption + [0] * (SHAPE["text_seq_len"] - len(caption)) for caption in captions])


def images(count, seed=1):
    return torch.randint(61, (count, 16), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def compare(model, ours, stream):
    captions, image_ids = [CAPTION, [], [1, 2, 3, 4, 5]], images(3)
    expected = model(text_of(captions), image_ids)
    ids = stream.join(stream.prefix(captions), image_ids.view(3, *GRID))[:, :-1]
    logits = ours.logits(ours(ids))
    text, image = logits[:, :5, : 41 + 5], logits[:, 5:, 41 + 5 :]
    torch.testing.assert_close(text, expected[:, :5, : 41 + 5], atol=1e-4, rtol=0)
    torch.testing.assert_close(image, expected[:, 5:, 41 + 5 :], atol=1e-4, rtol=0)
    assert image.std() > 0.3


@torch.no_grad()
def greedy(model, guidance=1.0):
    """A whole picture by the largest logit, computed from the start for every id; guided by a second forward pass."""
    drawn = torch.zeros(1, 0, dtype=torch.int64)
    for _ in range(16):
        given, null = (model(text_of([caption]), drawn)[0, -1, 41 + 5 :] for caption in (CAPTION, []))
        drawn = torch.cat([drawn, (null + guidance * (given - null)).argmax().view(1, 1)], 1)
    return drawn.view(GRID)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_same_logits_and_the_same_picture(tmp_path, options):
    model = make_dalle(**options)
    save(model, tmp_path / "dalle.pt", **options)
    run("import", "dalle-pytorch", tmp_path / "dalle.pt", "--out", tmp_path / "model")
    ours, stream = load(tmp_path / "model")
    compare(model, ours, stream)
    image_tokenizer, _ = load_image_tokenizer(tmp_path / "model")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(image_tokenizer.encode(2 * pixels - 1).flatten(1), model.vae.get_codebook_indices(pixels))
    for guidance in (1.0, 3.0):
        drawn = generate(ours, stream, Prompt(CAPTION), [0], SamplingConfig(temperature=0.0, guidance=guidance))
        assert torch.equal(drawn.image_ids[0], greedy(model, guidance))
        assert len(drawn.image_ids.unique()) > 3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_exported_again_it_is_the_same_model(tmp_path, options):
    save(make_dalle(**options), tmp_path / "dalle.pt", **options)
    run("import", "dalle-pytorch", tmp_path / "dalle.pt", "--out", tmp_path / "model")
    run("export", "dalle-pytorch", tmp_path / "model", "--out", tmp_path / "again.pt")
    package = import_dalle_pytorch()
    content = torch.load(tmp_path / "again.pt", weights_only=True)
    model = package.DALLE(vae=package.DiscreteVAE(**content["vae_params"]), **content["hparams"])
    model.load_state_dict(content["weights"])
    model.eval()
    original = make_dalle(**options)
    with torch.no_grad():
        expected = original(text_of([CAPTION]), images(1))
        torch.testing.assert_close(model(text_of([CAPTION]), images(1)), expected, atol=1e-4, rtol=0)
    assert torch.equal(model.vae.decode(images(1)), original.vae.decode(images(1)))
    size = sum(value.numel() * value.element_size() for value in content["weights"].values())
    assert (tmp_path / "again.pt").stat().st_size < 1.4 * size  # nothing is stored twice; names take room
