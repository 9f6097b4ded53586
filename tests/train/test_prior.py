"""The stage that trains a prior."""

import sys

import pytest
import torch
from helpers.emoji import make_emoji_set
from helpers.training import ROOT, config_of, interrupt, outcome

from dalle_mini_impl.checkpoint.parts import check_not_needed, read_part
from dalle_mini_impl.checkpoint.text_tokenizer import read_text_tokenizer
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.config.model import PriorConfig
from dalle_mini_impl.config.training import PriorRun
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.data.token_cache import CaptionSampler
from dalle_mini_impl.model.build import build_prior
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.train import prior as stage
from dalle_mini_impl.train.prior import PriorBatch, PriorLoss, embed_batch, embed_captions, embed_set, make_batch
from dalle_mini_impl.train.shared.scene_rows import open_scenes
from dalle_mini_impl.unclip.prior import SPACE, Prior
from dalle_mini_impl.util.errors import UserError

DIFFUSION = ("model.kind=diffusion", "sampling.sampler=ddim", "sampling.steps=2", "sampling.draws=1")


@pytest.fixture(scope="module")
def prior_home(trained, tmp_path_factory):
    """A home with an autoregressive prior. Tests must not change it."""
    home = trained.copy(tmp_path_factory.mktemp("prior") / "home", "transformer")
    home.run("prior")
    return home


def model_of(home):
    return home.folder / "model"


@pytest.mark.parametrize(
    ("step", "settings"),
    [(4, ()), (7, ("run.accumulation=2", "optimizer.muon_learning_rate=0.02")), (6, DIFFUSION)],
)
def test_a_resumed_run_is_the_uninterrupted_one(trained, tmp_path, monkeypatch, step, settings):
    whole, broken = (trained.copy(tmp_path / name, "transformer") for name in ("whole", "broken"))
    whole.run("prior", *settings)
    interrupt(broken, "prior", step, monkeypatch, *settings)
    broken.run("prior", "--resume", *settings)
    assert outcome(broken, "prior") == outcome(whole, "prior")


def test_the_part_knows_the_scorer_and_the_text_tokenizer_and_protects_them(prior_home):
    folder = model_of(prior_home)
    part = read_part(folder, "prior")
    scorer = Scorer.from_pretrained(folder)
    assert part.trained_with == {
        "text_tokenizer": read_text_tokenizer(folder).identity,
        "scorer": read_part(folder, "scorer").identity,
        SPACE: scorer_identity(scorer),
    }
    assert part.tensors["head.weight"].dtype == torch.bfloat16
    assert part.tensors["edges"].dtype == torch.float32  # rounded limits would fall together
    with pytest.raises(UserError, match=r"without parts that need its scorer .*, got prior"):
        check_not_needed(folder, "scorer", "0" * 16)
    drawn = Prior.from_pretrained(folder, scorer).draw(["a red disc"], [0])
    assert drawn.shape == (1, 7)


def test_validation_compares_drawn_embeddings_with_those_of_the_pictures(prior_home):
    lines = [line for line in prior_home.log("prior") if "cosine" in line]
    assert [line["step"] for line in lines] == [4, 9]
    folder, config = model_of(prior_home), config_of(prior_home, "prior")
    scorer = Scorer.from_pretrained(folder)
    store = open_store(config.data, "validation")
    embed = embed_set(scorer, store, prior_home.folder / "store")
    texts, text_embed = embed_captions(scorer, store, "en")
    drawn = Prior.from_pretrained(folder, scorer).draw(texts, range(len(texts)))
    assert lines[-1]["text_cosine"] == pytest.approx(float((embed * text_embed).sum(1).mean()), abs=1e-5)
    assert lines[-1]["cosine"] == pytest.approx(float((embed * drawn).sum(1).mean()), abs=0.05)  # saved in bfloat16


def test_the_set_is_embedded_once(prior_home, monkeypatch):
    config = config_of(prior_home, "prior")
    scorer = Scorer.from_pretrained(model_of(prior_home))
    train = open_store(config.data, "train")
    assert list(prior_home.folder.glob("store.scorer-32px.safetensors"))
    monkeypatch.setattr(Scorer, "embed_images", lambda *_: pytest.fail("embedded again"))
    assert embed_set(scorer, train, prior_home.folder / "store").shape == (len(train), 7)


def test_rows_of_a_batch_are_the_same_however_it_is_divided(prior_home, tmp_path):
    scorer, tokenizer = Scorer.from_pretrained(model_of(prior_home)), read_text_tokenizer(model_of(prior_home))
    folder = tmp_path / "emoji"
    folder.mkdir()
    make_emoji_set(folder)
    data = DataConfig(source=str(folder), store=str(tmp_path / "emoji-store"), store_size=32, fit="crop")
    train = open_store(data, "train")
    overrides = [f"scenes.store={data.store}", "scenes.share=0.5", "condition_dropout=0.4", f"data.store={data.store}"]
    config = load(PriorRun, prior_home.folder / "prior.yaml", [*overrides, "data.source=''"])
    scenes = open_scenes(config.scenes, config.run, (scorer.image_size,) * 2)
    captions = CaptionSampler(train.entries, {})
    embeds = embed_set(scorer, train, tmp_path / "emoji-store")

    def loss_inputs(rows):
        batch = make_batch(train, scenes, captions, tokenizer, scorer, config, 3, rows)
        return batch, *embed_batch(scorer, embeds, batch)

    whole, embed, text = loss_inputs(slice(0, 12))
    assert (len(whole.pictures), len(whole.scenes), len(embed)) == (6, 6, 12)
    assert 0 < whole.is_dropped.sum() < 12
    assert (whole.text_ids[whole.is_dropped] == tokenizer.pad_id).all()
    assert (whole.text_ids[~whole.is_dropped][:, 0] != tokenizer.pad_id).all()
    halves = [loss_inputs(slice(0, 6)), loss_inputs(slice(6, 12))]
    for count, place in ((6, "pictures"), (6, "scenes")):
        assert sum(len(getattr(half[0], place)) for half in halves) == count
    for name in ("noise", "times", "text_ids", "scorer_ids"):
        parts = torch.cat([getattr(half[0], name) for half in halves])
        assert sorted(parts.tolist()) == sorted(getattr(whole, name).tolist())
    order = torch.cat([half[0].noise for half in halves]).tolist()
    rows = [order.index(row) for row in whole.noise.tolist()]
    torch.testing.assert_close(torch.cat([half[1] for half in halves])[rows], embed)
    torch.testing.assert_close(torch.cat([half[2] for half in halves])[rows], text)


@pytest.mark.parametrize("kind", ["diffusion", "ar"])
def test_a_prior_learns_which_embedding_belongs_to_a_caption(kind):
    config = PriorConfig(kind=kind, n_layer=1, n_head=2, n_embd=32, text_length=5, components=8, buckets=8)
    generator = torch.Generator().manual_seed(0)
    embed = torch.nn.functional.normalize(torch.randn(16, 8, generator=generator), dim=-1)
    text_ids = torch.randint(1, 40, (16, 5), generator=generator)
    network = build_prior(config, embed_dim=8, text_vocab=40, pad_id=0)
    losses = PriorLoss(network)
    if kind == "ar":
        network.fit(embed, embed.flip(0))
    optimizer = torch.optim.Adam(losses.parameters(), 5e-3)
    history = []
    for _ in range(60):
        noise = torch.randn(16, 8, generator=generator)
        times = torch.randint(600, 1000, (16,), generator=generator)  # hardly anything of the embedding is left
        nothing = torch.empty(0)
        batch = PriorBatch(nothing, nothing, text_ids, nothing, torch.zeros(16, dtype=torch.bool), times, noise)
        loss = losses(embed, embed.flip(0), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert sum(history[-5:]) < 0.5 * sum(history[:5])


def test_the_paper_s_prior_has_a_billion_parameters():
    config = load(PriorRun, ROOT / "configs/unclip/paper.yaml")
    with torch.device("meta"):
        network = build_prior(config.model, embed_dim=1024, text_vocab=49408, pad_id=0)
    blocks = sum(value.numel() for value in network.trunk.blocks.parameters())
    assert blocks == pytest.approx(1.2e9, rel=0.01)
    with torch.device("meta"):
        ids = torch.zeros(2, 256, dtype=torch.int64)
        noised = torch.zeros(2, 1024)
        assert network(noised, ids[:, 0], ids, noised).shape == (2, 1024)
    assert (config.run.batch_size, config.run.steps, config.optimizer.learning_rate) == (4096, 600_000, 1.1e-4)
    assert (config.optimizer.betas[1], config.optimizer.weight_decay, config.run.ema) == (0.96, 0.06, 0.9999)
    assert (config.sampling.steps, config.sampling.draws, config.condition_dropout) == (64, 2, 0.1)


def test_a_folder_without_scorer_is_refused(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "transformer")
    (model_of(home) / "scorer.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no scorer\.safetensors; train that part first"):
        home.run("prior")


def test_another_scorer_s_embeddings_can_be_learned(trained, other_scorer, tmp_path):
    home = trained.copy(tmp_path / "home", "transformer")
    home.run("prior", f"scorer={other_scorer}", "run.steps=2", "run.validate_every=0")
    part = read_part(model_of(home), "prior")
    assert "scorer" not in part.trained_with
    assert part.trained_with[SPACE] == scorer_identity(Scorer.from_pretrained(other_scorer))
    own = Scorer.from_pretrained(model_of(home))
    with pytest.raises(UserError, match="was trained with embeddings of scorer"):
        Prior.from_pretrained(model_of(home), own)
    message = f"is not used: it draws embeddings of scorer {part.trained_with[SPACE]}, not of .* {scorer_identity(own)}"
    with pytest.warns(UserWarning, match=message):
        assert Prior.find(model_of(home), own) is None


def test_a_sampler_of_diffusers_needs_it_before_the_first_step(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    home = trained.copy(tmp_path / "home", "transformer")
    home.run("prior", *DIFFUSION)
    monkeypatch.setattr(stage, "PriorLoss", None)
    with pytest.raises(UserError, match=r"diffusers is not installed; run: pip install diffusers"):
        home.run("prior", *DIFFUSION, "sampling.sampler=ddpm")


def test_an_unknown_sampler_is_refused_before_anything_is_read(trained):
    with pytest.raises(UserError, match="expected sampler ddpm"):
        stage.main(load(PriorRun, trained.folder / "prior.yaml", ["sampling.sampler=heun"]))
