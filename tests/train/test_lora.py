"""Low-rank adapters: what they train, how they are merged, and that runs with them resume exactly."""

import sys

import pytest
import torch
from helpers.training import BatchMaker, identity, interrupt, outcome

from dalle_mini_impl.model.build import build_transformer, load_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.train.lora import add_adapters, with_merged_adapters
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.train.shared.optimizers import build_optimizers
from dalle_mini_impl.util.errors import UserError

MATRICES = ("attention.qkv.weight", "attention.out.weight", "mlp.up.weight", "mlp.down.weight")


def settings(trained, rank=3, *more):
    return (f"start_from={trained.folder}/model", f"lora.rank={rank}", "lora.alpha=6", *more)


@pytest.fixture
def adapted(trained):
    """A transformer with adapters, and the function that builds one without."""
    pytest.importorskip("peft")
    old, config = load_transformer(trained.folder / "model")
    maker = BatchMaker(trained, *settings(trained))

    def build():
        return StreamLoss(build_transformer(maker.config.model, config), Stream(config))

    losses = build()
    losses.transformer.load_state_dict(old.state_dict())
    add_adapters(losses, maker.config)
    return losses, build, maker


def test_adapters_change_nothing_at_first_and_freeze_the_matrices(adapted):
    losses, build, maker = adapted
    plain = with_merged_adapters(losses, build)
    batch = maker.make()
    with torch.no_grad():
        assert [float(loss) for loss in losses.eval()(*batch)] == [float(loss) for loss in plain(*batch)]
    trained = {name for name, parameter in losses.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0] for name in trained if ".lora_" in name} == {
        f"transformer.blocks.{layer}.{name}".removesuffix(".weight") for layer in range(2) for name in MATRICES
    }
    assert {name for name in trained if ".lora_" not in name} == {"transformer.embed.weight", "transformer.head.weight"}
    optimizers = build_optimizers(losses, maker.config.optimizer)
    assert len(optimizers) == 1  # the narrow matrices are not Muon's
    assert sum(len(group["params"]) for group in optimizers[0].param_groups) == len(trained)


def test_merged_weights_compute_the_same(adapted):
    losses, build, maker = adapted
    generator = torch.Generator().manual_seed(4)
    for name, parameter in losses.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    batch = maker.make()
    with torch.no_grad():
        expected = torch.stack(losses.eval()(*batch))
        plain = with_merged_adapters(losses, build)
        assert torch.allclose(torch.stack(plain(*batch)), expected, atol=1e-5)
    assert set(plain.state_dict()) == set(build().state_dict())
    assert with_merged_adapters(plain, build) is plain


def test_without_a_step_the_checkpoint_is_the_old_one(home, trained):
    pytest.importorskip("peft")
    home.run("transformer", *settings(trained, 3, "optimizer.learning_rate=0", "run.steps=1"))
    assert identity(home, "transformer") == identity(trained, "transformer")


def test_a_run_with_adapters_saves_a_plain_checkpoint_and_resumes_bit_for_bit(home, trained, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    broken = home.copy(tmp_path / "broken")
    home.run("transformer", *settings(trained))
    old, new = (load_transformer(folder)[0] for folder in (trained.folder / "model", home.folder / "model"))
    changed = {name for name, value in new.state_dict().items() if not torch.equal(value, old.state_dict()[name])}
    matrices = {f"blocks.{layer}.{name}" for layer in range(2) for name in MATRICES}
    assert changed == matrices | {"embed.weight", "head.weight"}
    for name in matrices:
        change = new.state_dict()[name] - old.state_dict()[name]
        singular = torch.linalg.svdvals(change)
        assert singular[3:].max() < 0.2 * singular[0]  # of rank 3, but for rounding to bf16
    interrupt(broken, "transformer", 6, monkeypatch, *settings(trained))
    with pytest.raises(UserError, match=r"got lora\.rank 3 -> 2; change"):
        broken.run("transformer", "--resume", *settings(trained, 2))
    broken.run("transformer", "--resume", *settings(trained))
    assert outcome(broken, "transformer") == outcome(home, "transformer")


def test_embeddings_can_stay(home, trained):
    pytest.importorskip("peft")
    home.run("transformer", *settings(trained, 3, "lora.embeddings=false", "run.steps=3"))
    old, new = (load_transformer(folder)[0] for folder in (trained.folder / "model", home.folder / "model"))
    assert torch.equal(old.embed.weight, new.embed.weight)
    assert not torch.equal(old.blocks[0].mlp.up.weight, new.blocks[0].mlp.up.weight)


def test_adapters_need_a_checkpoint_and_the_library(home, trained, monkeypatch):
    with pytest.raises(UserError, match=r"expected start_from with lora\.rank 3, got none"):
        home.run("transformer", "lora.rank=3")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft is not installed; run: pip install peft"):
        home.run("transformer", *settings(trained))


def test_adapters_cannot_be_sharded(trained, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"expected a run without FSDP for lora\.rank"):
        add_adapters(None, BatchMaker(trained, *settings(trained)).config)
