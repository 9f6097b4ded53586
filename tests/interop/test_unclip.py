"""Diffusion decoders as parts of the UnCLIPPipeline of `diffusers`."""

import json
import shutil

import pytest
import torch
from helpers.models import randomise
from helpers.priors import add_diffusion_decoder, add_upsampler
from safetensors import safe_open
from safetensors.torch import save_file

from dalle_mini_impl.checkpoint.parts import read_part, save_tensors
from dalle_mini_impl.interop.unclip import OWN_FILE, export_decoder, read_decoder, read_exported
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder
from dalle_mini_impl.unclip.schedule import make_scheduler
from dalle_mini_impl.util.errors import UserError

diffusers = pytest.importorskip("diffusers")


def text_projection_class():
    """The library's class, which has moved between its versions."""
    for place in ("deprecated.unclip", "unclip"):
        try:
            module = __import__(f"diffusers.pipelines.{place}.text_proj", fromlist=["UnCLIPTextProjModel"])
        except ImportError:
            continue
        return module.UnCLIPTextProjModel
    return pytest.skip("this version of diffusers has no UnCLIPTextProjModel")


def inputs(channels, side, width, length=3):
    generator = torch.Generator().manual_seed(0)
    noised = torch.randn(2, channels, side, side, generator=generator)
    embed, text_embed, hidden = (
        torch.randn(2, *shape, generator=generator) for shape in ((width,), (width,), (length, width))
    )
    is_text = torch.tensor([[True] * length, [True] + [False] * (length - 1)])
    return noised, torch.tensor([7, 912]), embed, text_embed, hidden, is_text


def theirs(decoder, projection, noised, times, embed, text_embed, hidden, is_text):
    """What UnCLIPPipeline computes in a step, without the variance."""
    context, added = projection(
        image_embeddings=embed,
        prompt_embeds=text_embed,
        text_encoder_hidden_states=hidden,
        do_classifier_free_guidance=False,
    )
    mask = torch.nn.functional.pad(is_text, (projection.clip_extra_context_tokens, 0), value=True)
    found = decoder(noised, times, context, class_labels=added, attention_mask=mask).sample
    return found[:, : noised.shape[1]]


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    """The tiny checkpoint with a diffusion decoder of pixels with captions, and an upsampler."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("exported") / "model")
    return add_upsampler(add_diffusion_decoder(folder, space="pixels", image_size=8, text_length=3), 8, 16)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "exported"
    export_decoder(checkpoint, folder)
    return folder


def test_the_library_computes_the_same_from_an_exported_decoder(checkpoint, exported):
    decoder = diffusers.UNet2DConditionModel.from_pretrained(exported, subfolder="decoder")
    projection = text_projection_class().from_pretrained(exported, subfolder="text_proj")
    network = DiffusionDecoder.from_pretrained(checkpoint, Scorer.from_pretrained(checkpoint)).network
    arguments = inputs(3, 8, network.embed_dim)
    with torch.no_grad():
        expected = network.denoise(*arguments)
        torch.testing.assert_close(theirs(decoder, projection, *arguments), expected, atol=1e-5, rtol=1e-5)
    scheduler = diffusers.DDIMScheduler.from_pretrained(exported, subfolder="decoder_scheduler")
    ours = make_scheduler("ddim", "v_prediction")
    assert torch.equal(scheduler.alphas_cumprod, ours.alphas_cumprod)
    for name in ("prediction_type", "clip_sample", "timestep_spacing"):
        assert scheduler.config[name] == ours.config[name]
    index = json.loads((exported / "model_index.json").read_text())
    assert index["decoder"] == ["diffusers", "UNet2DConditionModel"]
    assert index["text_encoder"] == [None, None]


def test_the_library_computes_the_same_from_an_exported_upsampler(checkpoint, exported):
    unet = diffusers.UNet2DModel.from_pretrained(exported, subfolder="super_res_first")
    upsampler = DiffusionDecoder.from_pretrained(checkpoint, Scorer.from_pretrained(checkpoint)).upsampler
    noised, low, levels = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8), torch.tensor([0.0, 0.1])
    large = torch.nn.functional.interpolate(low, (16, 16), mode="bicubic", antialias=True)
    times = torch.tensor([7, 912])
    with torch.no_grad():
        found = unet(torch.cat([noised, large], 1), times, class_labels=levels * 1000).sample
        torch.testing.assert_close(found, upsampler.network(noised, times, low, levels), atol=1e-5, rtol=1e-5)


def test_a_decoder_without_captions_is_exported_with_parts_that_say_nothing(tiny_model, tmp_path):
    folder = add_diffusion_decoder(shutil.copytree(tiny_model, tmp_path / "model"))
    export_decoder(folder, tmp_path / "out")
    decoder = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="decoder")
    projection = text_projection_class().from_pretrained(tmp_path / "out", subfolder="text_proj")
    network = DiffusionDecoder.from_pretrained(folder, Scorer.from_pretrained(folder)).network
    noised, times, embed, text_embed, hidden, is_text = inputs(network.channels, network.side, network.embed_dim)
    nothing = torch.zeros_like(is_text)
    with torch.no_grad():
        found = theirs(decoder, projection, noised, times, embed, text_embed, hidden, nothing)
        torch.testing.assert_close(found, network.denoise(noised, times, embed), atol=1e-5, rtol=1e-5)


def karlo(folder, **changes):
    """A decoder with random weights of the library's own classes, as small as can be, in the shape of Karlo's."""
    shape = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 6,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 32,
        "class_embed_type": "identity",
        "resnet_time_scale_shift": "scale_shift",
        **changes,
    }
    decoder = randomise(diffusers.UNet2DConditionModel(**shape), 5, 0.5)
    projection = text_projection_class()(
        clip_extra_context_tokens=4, clip_embeddings_dim=10, time_embed_dim=128, cross_attention_dim=16
    )
    randomise(projection, 6)
    decoder.save_pretrained(folder / "decoder")
    projection.save_pretrained(folder / "text_proj")
    return decoder, projection


def test_a_decoder_of_the_library_gives_its_own_output_here(tmp_path):
    models = karlo(tmp_path)
    network = read_decoder(tmp_path)
    arguments = inputs(3, 8, 10, length=5)
    with torch.no_grad():
        expected = theirs(*models, *arguments)
        torch.testing.assert_close(network.denoise(*arguments), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(
        UserError, match=r"expected dalle_mini_impl\.safetensors in .*hidden states of CLIP's text model"
    ):
        read_exported(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resnet_time_scale_shift": "default"}, "expected resnet_time_scale_shift scale_shift in .* got default"),
        ({"norm_num_groups": 16}, "expected norm_num_groups 32 in .* got 16"),
        ({"out_channels": 5}, "expected as many channels out as in, or twice as many, got 5 and 3"),
        ({"block_out_channels": "wide"}, "expected the configs of a UnCLIPPipeline's decoder"),
        ({"layers_per_block": 50}, "a network with more weights than the file has"),
        ({"sample_size": -8}, "expected as many channels out as in"),
        ({"sample_size": float("inf")}, "expected the configs of a UnCLIPPipeline's decoder"),
        ({"attention_head_dim": 7}, "expected channels that are multiples of head_dim 7"),
    ],
)
def test_other_decoders_are_refused(tmp_path, change, message):
    karlo(tmp_path)
    path = tmp_path / "decoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        read_decoder(tmp_path)


def test_the_commands_export_and_import(run, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    names = ("diffusion_decoder", "upsampler")
    before = {name: read_part(folder, name) for name in names}
    run("export", "diffusion-decoder", folder, "--out", tmp_path / "out")
    for name in names:
        (folder / f"{name}.safetensors").unlink()
    output = run("import", "diffusion-decoder", tmp_path / "out", "--out", folder)
    assert [line.rsplit(" ", 4)[0] for line in output.splitlines()] == ["diffusion decoder", "upsampler"]
    for name in names:
        after = read_part(folder, name)
        assert (after.config, after.trained_with) == (before[name].config, before[name].trained_with)
        for key, value in before[name].tensors.items():
            torch.testing.assert_close(after.tensors[key].float(), value, atol=0, rtol=2**-7)  # saved in bfloat16


def test_the_scale_of_latents_comes_back_as_it_was_measured(run, tiny_model, tmp_path):
    folder = add_diffusion_decoder(shutil.copytree(tiny_model, tmp_path / "model"))
    part = read_part(folder, "diffusion_decoder")
    measured = {name: torch.full_like(part.tensors[name], 1.01) for name in ("mean", "std")}  # no number of bfloat16
    save_tensors(folder, "diffusion_decoder", {**part.tensors, **measured}, part.config, part.trained_with)
    run("export", "diffusion-decoder", folder, "--out", tmp_path / "out")
    run("import", "diffusion-decoder", tmp_path / "out", "--out", folder)
    after = read_part(folder, "diffusion_decoder").tensors
    assert all(torch.equal(after[name], value) for name, value in measured.items())


@pytest.mark.parametrize("change", [{"head_dim": 4}, {"positions": 2}, {"image_size": 16}, {"channels": [8, 16]}])
def test_files_of_different_decoders_are_refused(exported, tmp_path, change):
    folder = shutil.copytree(exported, tmp_path / "out")
    with safe_open(folder / OWN_FILE, "pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    config = json.loads(header["config"])
    config["decoder"] |= change
    save_file(tensors, folder / OWN_FILE, {**header, "config": json.dumps(config)})
    with pytest.raises(UserError, match=r"expected a decoder in .* of the shape that .* names, got another"):
        read_exported(folder)


@pytest.mark.parametrize("name", ["tokens.weight", "places", "mean"])
def test_own_files_without_a_tensor_are_refused(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "out")
    with safe_open(folder / OWN_FILE, "pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys() if key != name}, file.metadata()  # noqa: SIM118
    save_file(tensors, folder / OWN_FILE, header)
    with pytest.raises(UserError, match=r"expected the \d+ tensors of this format, got .*"):
        read_exported(folder)
    save_file({**tensors, name: torch.tensor(1.0)}, folder / OWN_FILE, header)
    with pytest.raises(UserError):
        read_exported(folder)


@pytest.mark.parametrize(
    "name", [OWN_FILE, "decoder/config.json", "text_proj/config.json", "decoder/diffusion_pytorch_model.safetensors"]
)
def test_damaged_files_are_refused_in_one_line(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "out")
    path = folder / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError) as caught:
        read_exported(folder)
    assert "\n" not in str(caught.value)
