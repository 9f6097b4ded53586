"""Diffusion priors as the PriorTransformer of `diffusers`."""

import json
import shutil

import pytest
import torch
from helpers.models import randomise
from helpers.priors import add_prior

from dalle_mini_impl.checkpoint.parts import read_part, save_part
from dalle_mini_impl.config.model import PriorConfig
from dalle_mini_impl.config.sampling import PriorSamplingConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.interop.prior_transformer import (
    CONFIG_FILE,
    SCHEDULER_FILE,
    TOKENS_FILE,
    WEIGHTS_FILE,
    export_prior,
    read_exported,
    read_prior,
)
from dalle_mini_impl.model.build import build_prior
from dalle_mini_impl.util.errors import UserError

CONFIG = PriorConfig(n_layer=2, n_head=3, n_embd=18, text_length=5)
TRAINED_WITH = {"text_tokenizer": "a" * 16, "embeddings": "b" * 16}


def make_part(folder, config=CONFIG):
    network = randomise(build_prior(config, embed_dim=7, text_vocab=11, pad_id=0), 4)
    settings = {"prior": to_dict(config), "sampling": to_dict(PriorSamplingConfig(steps=3))}
    save_part(folder, "prior", network, settings, TRAINED_WITH, torch.float32)
    return network, read_part(folder, "prior")


def inputs(text=5, width=7):
    generator = torch.Generator().manual_seed(0)
    hidden, noised, embed = (
        torch.randn(2, *shape, generator=generator) for shape in ((text, width), (width,), (width,))
    )
    is_text = torch.tensor([[True] * text, [True] * 2 + [False] * (text - 2)])
    return noised, torch.tensor([7, 912]), hidden, is_text, embed


def theirs(model, noised, times, hidden, is_text, embed):
    with torch.no_grad():
        return model(noised, times, embed, hidden, is_text).predicted_image_embedding


def test_diffusers_computes_the_same_from_an_exported_prior(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    network, part = make_part(tmp_path)
    export_prior(part, tmp_path / "out")
    model = diffusers.PriorTransformer.from_pretrained(tmp_path / "out", subfolder="prior")
    with torch.no_grad():
        torch.testing.assert_close(theirs(model, *inputs()), network.denoise(*inputs()), atol=1e-5, rtol=1e-5)
        scaled = torch.randn(2, 7)
        found = torch.nn.functional.normalize(model.post_process_latents(scaled), dim=-1)
        torch.testing.assert_close(found, network.unscale(scaled))
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "out", subfolder="prior_scheduler")
    from dalle_mini_impl.unclip.schedule import make_scheduler

    ours = make_scheduler("ddpm")
    assert torch.equal(scheduler.alphas_cumprod, ours.alphas_cumprod)
    for name in ("prediction_type", "clip_sample", "timestep_spacing"):
        assert scheduler.config[name] == ours.config[name]


def test_a_prior_of_the_library_gives_its_own_output_here(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=6, num_layers=3, embedding_dim=10, num_embeddings=4
    )
    randomise(model, 5).save_pretrained(tmp_path / "prior")
    network = read_prior(tmp_path)
    arguments = inputs(4, 10)
    with torch.no_grad():
        torch.testing.assert_close(network.denoise(*arguments), theirs(model, *arguments), atol=1e-5, rtol=1e-5)
    with pytest.raises(
        UserError, match=r"expected token_embedding\.safetensors in .*hidden states of CLIP's text model"
    ):
        read_exported(tmp_path)


def test_an_exported_prior_comes_back_with_all_that_belongs_to_it(tmp_path):
    network, part = make_part(tmp_path)
    export_prior(part, tmp_path / "out")
    again, config, trained_with = read_exported(tmp_path / "out")
    assert (config, trained_with) == (part.config, TRAINED_WITH)
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, r"expected n_layer 2 in .*config\.json, as .*token_embedding\.safetensors has it, got 3"),
        ({"num_attention_heads": 2, "attention_head_dim": 9}, "expected n_head 3 in .* got 2"),
        ({"num_embeddings": 9}, "expected text_length 5 in .* got 9"),
    ],
)
def test_files_of_different_priors_are_refused_in_one_line(tmp_path, change, message):
    _, part = make_part(tmp_path)
    export_prior(part, tmp_path / "out")
    path = tmp_path / "out" / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message) as caught:
        read_exported(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_the_commands_export_and_import(run, tiny_model, tmp_path):
    folder = add_prior(shutil.copytree(tiny_model, tmp_path / "model"), "diffusion")
    before = read_part(folder, "prior")
    run("export", "prior-transformer", folder, "--out", tmp_path / "out")
    (folder / "prior.safetensors").unlink()
    assert run("import", "prior-transformer", tmp_path / "out", "--out", folder).startswith("prior ")
    after = read_part(folder, "prior")
    assert (after.config, after.trained_with) == (before.config, before.trained_with)
    for name, value in before.tensors.items():
        torch.testing.assert_close(after.tensors[name].float(), value, atol=0, rtol=2**-7)  # saved in bfloat16


def test_an_autoregressive_prior_is_not_exported(tmp_path):
    _, part = make_part(tmp_path, PriorConfig(**{**to_dict(CONFIG), "kind": "ar", "components": 3, "buckets": 4}))
    with pytest.raises(UserError, match=r"expected a diffusion prior .* got kind ar"):
        export_prior(part, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"added_emb_type": None}, "expected added_emb_type prd in .* got None"),
        ({"norm_in_type": "layer"}, "expected norm_in_type None in .* got layer"),
        ({"clip_embed_dim": 9}, "expected clip_embed_dim 7 in .* got 9"),
        ({"num_layers": 3}, "with 16 missing"),
        ({"embedding_dim": "wide"}, "expected embedding_dim from 1 to 1048576, got wide"),
        ({"embedding_dim": -7}, "expected embedding_dim from 1 to 1048576, got -7"),
        ({"embedding_dim": 10**12}, "expected embedding_dim from 1 to 1048576, got 1000000000000"),
        ({"num_layers": 10_000}, "a network with more weights than the file has"),
        ({"num_layers": "many"}, "expected the config of a PriorTransformer"),
        ({"num_attention_heads": 10**9}, "expected n_head of at least 1 and at most 1048576, got 1000000000"),
    ],
)
def test_other_priors_are_refused(tmp_path, change, message):
    _, part = make_part(tmp_path)
    export_prior(part, tmp_path / "out")
    path = tmp_path / "out" / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (tmp_path / "out" / TOKENS_FILE).unlink()  # as in folders of the library
    with pytest.raises(UserError, match=message):
        read_prior(tmp_path / "out")


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, TOKENS_FILE])
def test_damaged_files_are_refused_in_one_line(tmp_path, name):
    _, part = make_part(tmp_path)
    export_prior(part, tmp_path / "out")
    assert (tmp_path / "out" / SCHEDULER_FILE).is_file()
    path = tmp_path / "out" / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError) as caught:
        read_exported(tmp_path / "out")
    assert "\n" not in str(caught.value)
