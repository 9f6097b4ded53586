"""Tensors that are missing, unknown, of another shape or not floating-point are refused by name."""

import pytest
import torch
from helpers.foreign_examples import DISCRETE_VAE, DVAE_DECODER, DVAE_ENCODER, LLAMAGEN, VQGAN, altered

from dalle_mini_impl.interop.image import dalle_pytorch_vae, llamagen_vq, openai_dvae, taming_vqgan
from dalle_mini_impl.util.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"decoder__conv_in__bias": None},
            r"^expected the \d+ tensors of this format, got vqgan.pt with 1 missing \(decoder.conv_in.bias\); download",
        ),
        (
            {"quant_conv__bias": None, "quantize__used": torch.zeros(3), "decoder__conv_out__bias": torch.ones(5)},
            r"1 missing \(quant_conv.bias\); 1 unknown \(quantize.used\); "
            r"1 of another shape \(decoder.conv_out.bias is \(5,\), expected \(3,\)\); download",
        ),
        (
            {f"extra__{number}": torch.zeros(1) for number in range(9)},
            r"with 9 unknown \(extra.0, extra.1, extra.2 and 6 more\); download",
        ),
        (
            {"quant_conv__weight": None},
            "expected a tensor quant_conv.weight, which determines the shape of the network, got none in vqgan.pt",
        ),
        (
            {"quant_conv__weight": torch.tensor(3.0)},
            r"expected quant_conv.weight to have an axis 0, got shape \(\) in vqgan.pt; download",
        ),
        (
            {"encoder__down__1__block__0__conv2__weight": None},
            "expected a tensor encoder.down.1.block.0.conv2.weight, which",
        ),
        (
            {"quantize__embedding__weight": None},
            "expected quantize.embedding.weight or quantize.proj.weight, got neither in vqgan.pt",
        ),
        (
            {"encoder__conv_in__weight": None},
            r"expected a tensor whose name ends with encoder.conv_in.weight, got \d+ others in vqgan.pt \(decoder",
        ),
        ({"encoder__conv_in__weight": torch.zeros(8, 3, 3, 3)}, "multiples of 32 for network 'taming', got 8"),
        (
            {"decoder__conv_in__bias": torch.zeros(32, dtype=torch.int8)},
            r"expected floating-point tensors, got integers in vqgan.pt \(decoder.conv_in.bias\); import the",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, message):
    torch.save(altered(VQGAN, **changes), "vqgan.pt")
    with pytest.raises(UserError, match=message):
        taming_vqgan.load("vqgan.pt")


def test_files_of_another_format_are_refused():
    torch.save(VQGAN, "taming.pt")
    torch.save(LLAMAGEN, "llamagen.pt")
    torch.save(DISCRETE_VAE, "vae.pt")
    for load, files, name in (
        (taming_vqgan.load, "llamagen.pt", "encoder.down.0.block.0.conv2.weight, which"),
        (llamagen_vq.load, "taming.pt", "encoder.conv_blocks.0.res.0.conv2.weight, which"),
        (taming_vqgan.load, "vae.pt", "whose name ends with encoder.conv_in.weight"),
        (dalle_pytorch_vae.load, "taming.pt", "whose name ends with codebook.weight"),
        (openai_dvae.load, ("taming.pt", "vae.pt"), "whose name ends with blocks.input.w"),
    ):
        with pytest.raises(UserError, match=f"expected a tensor {name}"):
            load(files)


def test_discrete_vae_for_pictures_with_transparency_is_refused():
    torch.save(altered(DISCRETE_VAE, encoder__0__0__weight=torch.zeros(11, 4, 4, 4)), "vae.pt")
    with pytest.raises(UserError, match=r"encoder.0.0.weight is \(11, 4, 4, 4\), expected \(11, 3, 4, 4\)"):
        dalle_pytorch_vae.load("vae.pt")
    torch.save(altered(DISCRETE_VAE, encoder__0__0__weight=None), "vae.pt")
    with pytest.raises(UserError, match=r"expected a tensor encoder.0.0.weight, which"):
        dalle_pytorch_vae.load("vae.pt")


def test_dvae_needs_one_encoder_and_one_decoder():
    torch.save(DVAE_ENCODER, "encoder.pt")
    torch.save(DVAE_DECODER, "decoder.pt")
    torch.save({**DVAE_ENCODER, "blocks.input.w": torch.zeros(8, 3, 5, 5)}, "odd.pt")
    for files, found in (
        (["encoder.pt", "encoder.pt"], "encoder in encoder.pt, encoder.pt"),
        (["decoder.pt", "decoder.pt"], "decoder in decoder.pt, decoder.pt"),
        (["odd.pt", "decoder.pt"], "a network with a first kernel of 5 and decoder in odd.pt, decoder.pt"),
        (["encoder.pt"], "encoder in encoder.pt"),
        (["encoder.pt", "decoder.pt", "decoder.pt"], "encoder and decoder in encoder.pt, decoder.pt, decoder.pt"),
    ):
        with pytest.raises(UserError, match=f"expected two files, an encoder and a decoder, got {found}; give both"):
            openai_dvae.load(files)
    torch.save(altered(DVAE_DECODER, blocks__output__conv__b=None), "decoder.pt")
    with pytest.raises(UserError, match=r"1 missing \(decoder.blocks.output.conv.b\)"):
        openai_dvae.load(["decoder.pt", "encoder.pt"])
    torch.save({name: value for name, value in DVAE_ENCODER.items() if "group" not in name}, "encoder.pt")
    with pytest.raises(UserError, match=r"expected a tensor encoder.blocks.group_1.block_1.res_path.conv_4.w, which"):
        openai_dvae.load(["decoder.pt", "encoder.pt"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers_are_refused(value):
    broken = VQGAN["encoder.conv_out.weight"].clone()
    broken[-1] = value
    torch.save({**VQGAN, "encoder.conv_out.weight": broken}, "vqgan.pt")
    message = r"expected finite weights, got NaN or infinity in vqgan\.pt \(encoder\.conv_out\.weight\); the file is"
    with pytest.raises(UserError, match=message):
        taming_vqgan.load("vqgan.pt")
