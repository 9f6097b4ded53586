"""The originals, run for real on random weights; `make peers` installs them."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers.foreign_transformers import random_transformer
from torch import nn

from dalle_mini_impl.bench.peers import import_dalle_pytorch
from dalle_mini_impl.checkpoint.parts import save_part
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.interop.image import dalle_pytorch, openai_dvae, taming
from dalle_mini_impl.interop.whole import rudalle
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import Prompt, generate


def pixels01(count, size, seed=0):
    """Pictures (count, 3, size, size) as bytes divided by 255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator) / 255


def stored(imported, folder):
    """The tokenizer as it comes out of the checkpoint folder that it was written to."""
    save_part(folder, "image_tokenizer", imported.tokenizer, to_dict(imported.tokenizer.config), {}, imported.dtype)
    return load_image_tokenizer(folder)[0]


def liven(module, seed, gain=1.0):
    """Weights with which many ids come up and pictures vary."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            fan_in = value[0].numel() if value.ndim > 1 else 100
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(centre + gain * fan_in**-0.5 * torch.randn(value.shape, generator=generator))
    return module.eval()


# --- DALLE-pytorch


@pytest.mark.skipif(importlib.util.find_spec("dalle_pytorch") is None, reason="dalle-pytorch is not installed")
@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,) * 3, (0.5,) * 3), ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)), ((0.0,) * 3, (1.0,) * 3)]
)
@pytest.mark.parametrize(("layers", "blocks"), [(3, 0), (2, 2)])
def test_dalle_pytorch(tmp_path, layers, blocks, mean, std):
    settings = {
        "image_size": 32,
        "num_layers": layers,
        "num_tokens": 61,
        "codebook_dim": 7,
        "hidden_dim": 19,
        "num_resnet_blocks": blocks,
    }
    vae = liven(import_dalle_pytorch().DiscreteVAE(**settings, normalization=(mean, std)), 1, gain=1.5)
    torch.save({"hparams": settings, "weights": vae.state_dict()}, tmp_path / "vae.pt")
    tokenizer = stored(dalle_pytorch.load(tmp_path / "vae.pt", mean=mean, std=std), tmp_path)
    assert tokenizer.config.grid == (32 // 2**layers,) * 2

    pixels = pixels01(5, 32)
    ids = vae.get_codebook_indices(pixels)
    assert len(ids.unique()) > 5
    assert torch.equal(tokenizer.encode(2 * pixels - 1).flatten(1), ids)
    with torch.no_grad():
        pictures = vae.decode(ids) * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    decoded = tokenizer.decode(ids.view(5, *tokenizer.config.grid))
    torch.testing.assert_close(decoded, (2 * pictures - 1).clamp(-1, 1), atol=1e-5, rtol=0)


# --- taming-transformers


class VQGAN(nn.Module):
    """The pieces as taming's `VQModel` and `GumbelVQ` put them together, without Lightning and losses."""

    def __init__(self, gumbel):
        super().__init__()
        model = pytest.importorskip("taming.modules.diffusionmodules.model")
        quantize = pytest.importorskip("taming.modules.vqvae.quantize")
        embed = 12 if gumbel else 7
        settings = {
            "ch": 32,
            "out_ch": 3,
            "ch_mult": (1, 2, 3),
            "num_res_blocks": 2,
            "attn_resolutions": [8],
            "in_channels": 3,
            "resolution": 32,
            "z_channels": 12,
            "double_z": False,
        }
        self.encoder, self.decoder = model.Encoder(**settings), model.Decoder(**settings)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(12, embed, 1), nn.Conv2d(embed, 12, 1)
        self.quantize = (
            quantize.GumbelQuantize(12, embed, 61) if gumbel else quantize.VectorQuantizer2(61, embed, beta=0.25)
        )


@pytest.mark.parametrize("gumbel", [False, True])
def test_taming(tmp_path, gumbel):
    model = liven(VQGAN(gumbel), 2)
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "last.ckpt")
    tokenizer = stored(taming.load(tmp_path / "last.ckpt", image_size=32), tmp_path)

    pixels = 2 * pixels01(3, 32) - 1
    with torch.no_grad():
        z = model.quant_conv(model.encoder(pixels))
        ids = model.quantize.proj(z).argmax(1) if gumbel else model.quantize(z)[2][2].view(3, 8, 8)
        vectors = model.quantize.get_codebook_entry(ids.flatten(), (3, 8, 8, -1))
        decoded = model.decoder(model.post_quant_conv(vectors))
    assert len(ids.unique()) > 5
    assert torch.equal(tokenizer.encode(pixels), ids)
    torch.testing.assert_close(tokenizer.decode(ids), decoded.clamp(-1, 1), atol=1e-5, rtol=0)


# --- OpenAI


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before torch 1.6"])
def test_openai(tmp_path, archive):
    package = pytest.importorskip("dall_e")
    encoder = liven(package.Encoder(n_hid=64, vocab_size=512), 3, gain=1.6)
    decoder = liven(package.Decoder(n_hid=64, n_init=32, vocab_size=512), 4, gain=1.6)
    for name, module in {"encoder": encoder, "decoder": decoder}.items():
        for weight in (layer.w for key, layer in module.named_modules() if key.endswith("conv_4")):
            weight.data *= 10  # residuals are divided by 64: else they would not show
        torch.save(module, tmp_path / f"{name}.pkl", _use_new_zipfile_serialization=archive)
    paths = tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"
    tokenizer = stored(openai_dvae.load(paths, 64, trust_pickle=True), tmp_path)

    pixels = pixels01(2, 64)
    with torch.no_grad():
        ids = encoder(package.map_pixels(pixels)).argmax(1)
        one_hot = nn.functional.one_hot(ids, 512).movedim(-1, 1).float()
        decoded = 2 * package.unmap_pixels(torch.sigmoid(decoder(one_hot).float()[:, :3])) - 1
    assert len(ids.unique()) > 5
    assert torch.equal(tokenizer.encode(2 * pixels - 1), ids)
    torch.testing.assert_close(tokenizer.decode(ids), decoded, atol=1e-5, rtol=0)


# --- ruDALL-E


@pytest.fixture
def rudalle_model(monkeypatch):
    """The package's transformer without what the rest of it imports."""
    found = importlib.util.find_spec("rudalle")
    if found is None or found.origin is None:
        pytest.skip("rudalle is not installed")
    for name in ("rudalle", "rudalle.dalle"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(found.origin).parent.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    return importlib.import_module("rudalle.dalle.model").DalleModel


@pytest.mark.parametrize("is_bool_mask", [True, False])
@pytest.mark.parametrize("version", [2, 3])
def test_rudalle(tmp_path, rudalle_model, version, is_bool_mask):
    peer = rudalle_model(
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
    shapes = {name: tuple(value.shape) for name, value in peer.named_parameters()}
    peer.load_state_dict({**peer.state_dict(), **random_transformer(shapes)})
    torch.save(peer.state_dict(), tmp_path / "pytorch_model.bin")
    imported = rudalle.load(tmp_path / "pytorch_model.bin", 2)
    transformer, stream = build_transformer(imported.config, imported.stream).eval(), Stream(imported.stream)
    transformer.load_state_dict(imported.tensors)

    ids = torch.randint(29, (1, 13, 13), generator=torch.Generator().manual_seed(1))
    text, caption = torch.tensor([[2, 11, 5, 3, 0, 0, 0]]), [2, 11, 5, 3]
    size = 7 + 13 * 13
    with torch.no_grad():
        mask = torch.ones(1, 1, size, size).tril()
        theirs, _ = peer(torch.cat([text, ids.flatten(1)], 1), mask)
        ours = transformer.logits(transformer(stream.join(stream.prefix([caption]), ids)))[:, : theirs.shape[1]]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    drawn = generate(transformer, stream, Prompt(caption, []), [1], SamplingConfig(temperature=0, guidance=1))
    row, cache = text, None
    for _ in range(40):
        with torch.no_grad():
            logits, cache = peer(row, mask, use_cache=True, cache=cache)
        row = torch.cat([row, logits[:, -1, 37:].argmax(-1, keepdim=True)], 1)
    assert torch.equal(drawn.image_ids.flatten()[:40], row[0, 7:])
    assert len(row[0, 7:].unique()) > 5
