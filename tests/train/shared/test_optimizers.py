import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from helpers.models import SCORER, make_image_tokenizer, make_transformer
from torch import nn

from dalle_mini_impl.config.training import OptimizerConfig
from dalle_mini_impl.model.build import build_clip
from dalle_mini_impl.model.vqvae import ResidualBlock
from dalle_mini_impl.train.shared.muon import Muon
from dalle_mini_impl.train.shared.optimizers import apply_gradients, build_optimizers, rate_share, set_learning_rate

CONFIG = OptimizerConfig(learning_rate=0.3, weight_decay=0.07, warmup_steps=4, decay_start=0.5, final_rate=0.1)
MUON = replace(CONFIG, muon_learning_rate=0.02, muon_every=1)
MODELS = {
    "transformer": lambda: make_transformer()[0],
    "learned": lambda: make_transformer("learned")[0],
    "image_tokenizer": make_image_tokenizer,
    "scorer": lambda: build_clip(SCORER, 367, pad_id=0, eos_id=3),
}


# --- who is trained by what


def groups(model, config):
    """For each parameter's name: optimizer, weight decay."""
    names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    return [
        (names[parameter.data_ptr()], type(optimizer).__name__, group["weight_decay"])
        for optimizer in build_optimizers(model, config)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


@pytest.mark.parametrize("config", [CONFIG, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_in_one_optimizer_and_only_matrices_decay(kind, config):
    model = MODELS[kind]()
    found = groups(model, config)
    assert sorted(name for name, _, _ in found) == sorted(name for name, _ in model.named_parameters())
    sizes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert {name: decay for name, _, decay in found} == {n: 0.07 if size >= 2 else 0.0 for n, size in sizes.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_adamw_alone_without_muon(kind):
    assert {optimizer for _, optimizer, _ in groups(MODELS[kind](), CONFIG)} == {"AdamW"}


def test_muon_takes_the_hidden_matrices_of_the_transformer():
    found = {name for name, optimizer, _ in groups(MODELS["transformer"](), MUON) if optimizer == "Muon"}
    expected = {f"blocks.{n}.{part}.weight" for n in range(3) for part in ("mlp.up", "mlp.down", "attention.out")}
    assert expected < found
    assert all(name.startswith("blocks.") and "norm" not in name for name in found)
    assert not {"embed.weight", "head.weight"} & found


def test_muon_takes_the_hidden_matrices_of_both_towers():
    found = [(name, optimizer) for name, optimizer, _ in groups(MODELS["scorer"](), MUON)]
    hidden = {name for name, optimizer in found if optimizer == "Muon"}
    assert {name.split(".")[0] for name in hidden} == {"image_tower", "text_tower"}
    assert all(".blocks." in name for name in hidden)


def test_muon_takes_the_convolutions_of_residual_blocks():
    model = make_image_tokenizer()
    blocks = [
        f"{path}.{part}.weight"
        for path, module in model.named_modules()
        if isinstance(module, ResidualBlock)
        for part in ("conv1", "conv2")
    ]
    assert len(blocks) == 8
    assert {name for name, optimizer, _ in groups(model, MUON) if optimizer == "Muon"} == set(blocks)


@pytest.mark.parametrize("config", [CONFIG, MUON], ids=["adamw", "muon"])
def test_a_step_moves_every_parameter(config):
    model = nn.ModuleDict({"embed": nn.Embedding(5, 7), "blocks": nn.ModuleList([nn.Linear(7, 7), nn.LayerNorm(7)])})
    before = {name: value.clone() for name, value in model.named_parameters()}
    hidden = model["embed"](torch.arange(5))
    for block in cast(nn.ModuleList, model["blocks"]):
        hidden = block(hidden)
    (hidden * torch.arange(35).reshape(5, 7)).sum().backward()
    for optimizer in build_optimizers(model, config):
        optimizer.step()
    assert all((value != before[name]).any() for name, value in model.named_parameters())


def test_weights_without_gradient_decay_at_their_own_rate():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 7), "blocks": nn.ModuleList([nn.Linear(7, 7)])})
    before = {name: value.clone() for name, value in model.named_parameters()}
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    for optimizer in build_optimizers(model, MUON):
        optimizer.step()
    after = dict(model.named_parameters())
    assert torch.allclose(after["embed.weight"], before["embed.weight"] * (1 - 0.3 * 0.07))
    assert torch.allclose(after["blocks.0.weight"], before["blocks.0.weight"] * (1 - 0.02 * 0.07))
    assert torch.equal(after["blocks.0.bias"], before["blocks.0.bias"])


# --- a step of all optimizers


def scaled(scaler):
    """An accelerator that scales losses."""
    return SimpleNamespace(scaler=scaler, clip_grad_norm_=torch.nn.utils.clip_grad_norm_)


def two_networks():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2, bias=False), nn.Conv2d(3, 2, 1, bias=False)
    optimizers = [Muon([second.weight], 0.1, 0.9, 0.0), torch.optim.AdamW(first.parameters(), 0.1, fused=True)]
    return [first, second], optimizers


@pytest.mark.parametrize("scale", [None, 2.0**10])
def test_gradients_are_clipped_by_network_and_all_optimizers_step(scale):
    networks, optimizers = two_networks()
    for number, network in enumerate(networks):
        network.weight.grad = torch.full_like(network.weight, (number + 1.0) * (scale or 1))
    scaler = scale and torch.amp.GradScaler("cpu", init_scale=scale)
    if scaler:
        scaler.scale(torch.ones(()))  # it makes its numbers at the first loss
    before = [network.weight.detach().clone() for network in networks]
    norms = apply_gradients(scaled(scaler), networks, optimizers, 1.0)
    assert [float(norm) for norm in norms] == pytest.approx([6**0.5, 2 * 6**0.5])
    assert all((network.weight != old).all() for network, old in zip(networks, before, strict=True))
    assert all(network.weight.grad is None for network in networks)
    moments = optimizers[1].state[networks[0].weight]["exp_avg"]
    torch.testing.assert_close(moments, torch.full((2, 3), 0.1 * 6**-0.5))  # of gradients clipped to norm 1


def test_a_step_whose_gradients_overflow_is_left_out():
    networks, optimizers = two_networks()
    networks[0].weight.grad = torch.ones(2, 3)
    networks[1].weight.grad = torch.full((2, 3, 1, 1), math.inf)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(torch.ones(()))
    before = [network.weight.detach().clone() for network in networks]
    norms = apply_gradients(scaled(scaler), networks, optimizers, 1.0)
    assert float(norms[1]) == 0
    assert all(torch.equal(network.weight, old) for network, old in zip(networks, before, strict=True))
    assert scaler.get_scale() == 32
    assert networks[0].weight.grad is None


# --- the schedule: 4 steps of warmup, constant to step 12, then down to a tenth at step 24


def test_rate_by_hand():
    shares = [rate_share(step, 24, CONFIG) for step in range(25)]
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert shares[4:13] == pytest.approx([1.0] * 9)
    assert shares[15] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert shares[18] == pytest.approx(0.1 + 0.9 * 0.5)
    assert shares[24] == pytest.approx(0.1)
    assert shares[12:] == sorted(shares[12:], reverse=True)


def test_cosine_begins_after_the_warmup_when_that_is_later():
    config = replace(CONFIG, decay_start=0.0)
    assert rate_share(4, 24, config) == pytest.approx(1)
    assert rate_share(14, 24, config) == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate_share(24, 24, config) == pytest.approx(0.1)


def test_rate_without_warmup_or_decay():
    assert rate_share(0, 10, replace(CONFIG, warmup_steps=0)) == 1
    constant = replace(CONFIG, warmup_steps=0, decay_start=1.0)
    assert [rate_share(step, 10, constant) for step in range(10)] == [1] * 10


def test_a_run_shorter_than_its_warmup_only_warms_up():
    assert [rate_share(step, 3, CONFIG) for step in range(3)] == pytest.approx([0.25, 0.5, 0.75])


def test_rate_stays_at_its_end():
    assert rate_share(99, 24, CONFIG) == pytest.approx(0.1)


def test_set_rate_keeps_each_optimizers_peak():
    optimizers = build_optimizers(MODELS["transformer"](), MUON)
    for step, share in ((0, 0.25), (18, 0.55), (1, 0.5)):  # twice in a row must not multiply up
        assert set_learning_rate(optimizers, step, 24, MUON) == pytest.approx(share)
        assert [group["lr"] for group in optimizers[0].param_groups] == pytest.approx([0.3 * share] * 2)
        assert [group["lr"] for group in optimizers[1].param_groups] == pytest.approx([0.02 * share])


def test_the_step_says_whose_turn_it_is_with_muon():
    optimizers = build_optimizers(MODELS["transformer"](), replace(MUON, muon_every=2))
    for step in (7, 4):
        set_learning_rate(optimizers, step, 24, MUON)
        assert optimizers[1].param_groups[0]["turn"] == step
    assert optimizers[1].param_groups[0]["every"] == 2
