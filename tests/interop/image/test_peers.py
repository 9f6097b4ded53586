"""Image tokenizers of the real packages, with random weights, beside what is imported; `make peers` installs them."""

import importlib.util

import pytest
import torch
from torch import nn

from dalle_mini_impl.bench.peers import import_dalle_pytorch
from dalle_mini_impl.checkpoint.parts import save_part
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.interop.image import dalle_pytorch_vae, openai_dvae, taming_vqgan
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer


def random_bytes(count, size, seed=0):
    """Pictures (count, 3, size, size) of random bytes, divided by 255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator) / 255


def saved_and_loaded(imported, folder):
    """The tokenizer, read from a checkpoint folder that it was written to."""
    save_part(folder, "image_tokenizer", imported.tokenizer, to_dict(imported.tokenizer.config), {}, imported.dtype)
    return ImageTokenizer.from_pretrained(folder)


def randomise(module, seed, gain=1.0):
    """Random weights with which many ids occur and pictures vary."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            fan_in = value[0].numel() if value.ndim > 1 else 100
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(mean + gain * fan_in**-0.5 * torch.randn(value.shape, generator=generator))
    return module.eval()


# --- DALLE-pytorch


@pytest.mark.skipif(importlib.util.find_spec("dalle_pytorch") is None, reason="dalle-pytorch is not installed")
@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,) * 3, (0.5,) * 3), ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)), ((0.0,) * 3, (1.0,) * 3)]
)
@pytest.mark.parametrize(("layers", "blocks"), [(3, 0), (2, 2)])
def test_discrete_vae_matches_dalle_pytorch(tmp_path, layers, blocks, mean, std):
    hparams = {
        "image_size": 32,
        "num_layers": layers,
        "num_tokens": 61,
        "codebook_dim": 7,
        "hidden_dim": 19,
        "num_resnet_blocks": blocks,
    }
    vae = randomise(import_dalle_pytorch().DiscreteVAE(**hparams, normalization=(mean, std)), 1, gain=1.5)
    torch.save({"hparams": hparams, "weights": vae.state_dict()}, "vae.pt")
    tokenizer = saved_and_loaded(dalle_pytorch_vae.load("vae.pt", mean=mean, std=std), tmp_path)
    assert tokenizer.config.grid == (32 // 2**layers,) * 2

    pixels = random_bytes(5, 32)
    ids = vae.get_codebook_indices(pixels)
    assert len(ids.unique()) > 5
    assert torch.equal(tokenizer.encode(2 * pixels - 1).flatten(1), ids)
    with torch.no_grad():
        expected = vae.decode(ids) * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    decoded = tokenizer.decode(ids.view(5, *tokenizer.config.grid))
    torch.testing.assert_close(decoded, (2 * expected - 1).clamp(-1, 1), atol=1e-5, rtol=0)


# --- taming-transformers


class VQGANOfTaming(nn.Module):
    """The modules of taming's `VQModel` or `GumbelVQ`, without Lightning and losses."""

    def __init__(self, gumbel):
        super().__init__()
        model = pytest.importorskip("taming.modules.diffusionmodules.model")
        quantize = pytest.importorskip("taming.modules.vqvae.quantize")
        embed_dim = 12 if gumbel else 7
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
        self.encoder = model.Encoder(**settings)
        self.decoder = model.Decoder(**settings)
        self.quant_conv = nn.Conv2d(12, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, 12, 1)
        self.quantize = (
            quantize.GumbelQuantize(12, embed_dim, 61)
            if gumbel
            else quantize.VectorQuantizer2(61, embed_dim, beta=0.25)
        )


@pytest.mark.parametrize("gumbel", [False, True])
def test_vqgan_matches_taming(tmp_path, gumbel):
    model = randomise(VQGANOfTaming(gumbel), 2)
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, "last.ckpt")
    tokenizer = saved_and_loaded(taming_vqgan.load("last.ckpt", image_size=32), tmp_path)

    pixels = 2 * random_bytes(3, 32) - 1
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
def test_dvae_matches_openai(tmp_path, archive):
    package = pytest.importorskip("dall_e")
    encoder = randomise(package.Encoder(n_hid=64, vocab_size=512), 3, gain=1.6)
    decoder = randomise(package.Decoder(n_hid=64, n_init=32, vocab_size=512), 4, gain=1.6)
    for name, module in {"encoder": encoder, "decoder": decoder}.items():
        # Residual paths are divided by 64, so that they would have no visible effect
        for weight in (layer.w for key, layer in module.named_modules() if key.endswith("conv_4")):
            weight.data *= 10
        torch.save(module, f"{name}.pkl", _use_new_zipfile_serialization=archive)
    tokenizer = saved_and_loaded(openai_dvae.load(["encoder.pkl", "decoder.pkl"], 64, trust_pickle=True), tmp_path)

    pixels = random_bytes(2, 64)
    with torch.no_grad():
        ids = encoder(package.map_pixels(pixels)).argmax(1)
        one_hot = nn.functional.one_hot(ids, 512).movedim(-1, 1).float()
        decoded = 2 * package.unmap_pixels(torch.sigmoid(decoder(one_hot).float()[:, :3])) - 1
    assert len(ids.unique()) > 5
    assert torch.equal(tokenizer.encode(2 * pixels - 1), ids)
    torch.testing.assert_close(tokenizer.decode(ids), decoded, atol=1e-5, rtol=0)
