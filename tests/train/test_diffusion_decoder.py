"""The stage that trains the diffusion decoder and its upsampler."""

import pytest
import torch
from helpers.training import ROOT, interrupt, outcome
from PIL import Image

from dalle_mini_impl.checkpoint.parts import check_not_needed, read_part
from dalle_mini_impl.checkpoint.text_tokenizer import read_text_tokenizer
from dalle_mini_impl.config.diffusion import DiffusionDecoderConfig, DiffusionDecoderRun
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.model.diffusion import PictureDenoiser, PictureUpsampler
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.train.diffusion_batch import BatchMaker, DiffusionLoss, Fixed, loss_inputs
from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder, Wanted
from dalle_mini_impl.unclip.prior import SPACE
from dalle_mini_impl.util.errors import UserError

pytest.importorskip("diffusers")

LATENTS = ("model.space=latents", "model.channels=[8]", "model.text_length=6", "run.sample_every=0")
UPSAMPLER = ("model.kind=upsampler", "model.low_size=8", "model.image_size=16", "sampling.steps=2")


@pytest.fixture(scope="module")
def home(trained, tmp_path_factory):
    """A home with a diffusion decoder of pixels with captions, and its upsampler. Tests must not change it."""
    home = trained.copy(tmp_path_factory.mktemp("decoder") / "home", "transformer")
    home.run("diffusion_decoder", "model.image_size=8", "model.text_length=6")
    home.run("diffusion_decoder", *UPSAMPLER, f"run.state_dir={home.folder / 'upsampler'}")
    return home


def model_of(home):
    return home.folder / "model"


def maker_of(home, *overrides):
    config = load(DiffusionDecoderRun, home.folder / "diffusion_decoder.yaml", [*overrides])
    fixed, identities = Fixed.of(config, "cpu")
    network = fixed.build(config)
    store = open_store(config.data, "train")
    channels = getattr(network, "channels", 3)
    encoded = fixed.read(store, home.folder / "store", identities)
    return BatchMaker(store, fixed, config, channels, network.side), encoded, network


def test_a_resumed_run_is_the_uninterrupted_one(trained, tmp_path, monkeypatch):
    settings = (*LATENTS, "model.prediction=epsilon", "run.accumulation=2")
    whole, broken = (trained.copy(tmp_path / name, "transformer") for name in ("whole", "broken"))
    whole.run("diffusion_decoder", *settings)
    interrupt(broken, "diffusion_decoder", 7, monkeypatch, *settings)
    broken.run("diffusion_decoder", "--resume", *settings)
    assert outcome(broken, "diffusion_decoder") == outcome(whole, "diffusion_decoder")


def test_the_part_knows_what_it_was_trained_with_and_protects_it(home, trained, tmp_path):
    folder = model_of(home)
    part = read_part(folder, "diffusion_decoder")
    assert part.trained_with == {
        "scorer": read_part(folder, "scorer").identity,
        SPACE: scorer_identity(Scorer.from_pretrained(folder)),
        "text_tokenizer": read_text_tokenizer(folder).identity,
    }
    assert {value.dtype for name, value in part.tensors.items() if name not in ("mean", "std")} == {torch.bfloat16}
    with pytest.raises(UserError, match=r"without parts that need its scorer .*, got diffusion_decoder"):
        check_not_needed(folder, "scorer", "0" * 16)
    assert read_part(folder, "upsampler").trained_with == {}
    latents = trained.copy(tmp_path / "home", "transformer")
    latents.run("diffusion_decoder", *LATENTS, "run.steps=1")
    part = read_part(model_of(latents), "diffusion_decoder")
    assert part.trained_with["image_tokenizer"] == read_part(folder, "image_tokenizer").identity
    assert part.tensors["std"].dtype == torch.float32
    assert part.tensors["std"].shape == (5,)


def test_what_was_trained_draws_pictures_of_the_upsampler_s_size(home):
    folder = model_of(home)
    decoder = DiffusionDecoder.from_pretrained(folder, Scorer.from_pretrained(folder))
    drawn = decoder.draw(Wanted([[1.0] * 7] * 2, "a red disc"), [0, 1], SamplingConfig(steps=2))
    assert (decoder.size, drawn.pixels.shape) == (16, (2, 3, 16, 16))


def test_loss_validation_and_sheets_are_written(home):
    lines = home.log("diffusion_decoder")
    assert [line["step"] for line in lines if "loss" in line] == list(range(10))
    assert [line["step"] for line in lines if "validation" in line] == [4, 9]
    assert all(-1 <= line["cosine"] <= 1 for line in lines if "cosine" in line)
    for stage, side in (("diffusion_decoder", 8), ("upsampler", 16)):
        (first, _) = sorted((home.folder / stage).glob("samples-*.png"))
        with Image.open(first) as sheet:
            assert min(sheet.size) >= 2 * side


def test_rows_of_a_batch_are_the_same_however_it_is_divided(home):
    maker, _, _ = maker_of(home, "model.text_length=6", "caption_dropout=0.5", "embed_dropout=0.5")
    whole = maker.make(3, slice(0, 12))
    parts = [maker.make(3, slice(0, 6)), maker.make(3, slice(6, 12))]
    for name in whole._fields:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    pad = maker.fixed.text_tokenizer.pad_id
    assert 0 < whole.is_given.sum() < 12
    assert 0 < whole.has_caption.sum() < 12
    assert (whole.text_ids[~whole.has_caption] == pad).all()
    assert (whole.text_ids[whole.has_caption][:, 0] != pad).all()


def test_dropped_embeddings_and_captions_are_not_seen(home):
    maker, encoded, network = maker_of(home, "model.text_length=6", "caption_dropout=1", "embed_dropout=1")
    batch = maker.make(0, slice(0, 4))
    pictures, embed, text = loss_inputs(maker.fixed, encoded, batch)
    assert not text.any()
    losses = DiffusionLoss(network, "v_prediction")
    assert torch.equal(losses(pictures, embed, text, batch), losses(pictures, embed.flip(0), text, batch))
    given = batch._replace(is_given=~batch.is_given)
    assert losses(pictures, embed, text, given) != losses(pictures, embed.flip(0), text, given)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_network_that_knows_the_picture_has_no_loss(prediction):
    class Knows(PictureDenoiser):
        def forward(self, noised, times, embed, is_given, text_ids=None, text_embed=None):
            alpha = losses._scheduler.alphas_cumprod[times][:, None, None, None]
            if prediction == "epsilon":
                return (noised - alpha.sqrt() * pictures) / (1 - alpha).sqrt()
            return (alpha.sqrt() * noised - pictures) / (1 - alpha).sqrt()

    config = DiffusionDecoderConfig(channels=(8,), head_dim=8, context_dim=8, attention_stages=1, image_size=8)
    network = Knows(config, channels=3, side=8, embed_dim=4, text_vocab=1, pad_id=0)
    losses = DiffusionLoss(network, prediction)
    pictures = torch.rand(3, 3, 8, 8) * 2 - 1
    maker = BatchMaker(None, Fixed(), DiffusionDecoderRun(model=config), 3, 8)
    store = type("Store", (), {"take": lambda self, indices: torch.zeros(len(indices), 8, 8, 4).byte().numpy()})()
    batch = BatchMaker(store, Fixed(), maker.config, 3, 8).held_out(3)
    assert losses(pictures, torch.ones(3, 4), None, batch) < 1e-6


def test_the_paper_s_networks_have_its_numbers():
    config = load(DiffusionDecoderRun, ROOT / "configs/unclip/decoder.yaml")
    with torch.device("meta"):
        network = PictureDenoiser(config.model, channels=3, side=64, embed_dim=1024, text_vocab=49408, pad_id=0)
    text_encoder = 24 * 12 * 2048**2  # the paper's own, which is a table of vectors here
    count = sum(value.numel() for value in network.unet.parameters())
    assert count + text_encoder == pytest.approx(3.5e9, rel=0.02)
    upsampler = load(DiffusionDecoderRun, ROOT / "configs/unclip/upsampler.yaml")
    with torch.device("meta"):
        enlarging = PictureUpsampler(upsampler.model)
    assert sum(value.numel() for value in enlarging.parameters()) == pytest.approx(0.7e9, rel=0.05)
    assert (upsampler.model.low_size, upsampler.model.image_size) == (64, 256)
    assert (config.run.batch_size, config.run.steps, config.optimizer.learning_rate) == (2048, 800_000, 1.2e-4)
    assert (config.embed_dropout, config.caption_dropout, config.model.positions) == (0.1, 0.5, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.kind=gan",), "expected model.kind decoder or upsampler, got 'gan'"),
        (("model.space=waves",), "expected model.space pixels or latents, got 'waves'"),
        (("model.prediction=x",), "expected model.prediction v_prediction or epsilon, got 'x'"),
        (("sampling.steps=1001",), "expected 1 to 1000 sampling.steps, got 1001"),
        (("sampling.steps=0",), "expected sampling.steps of at least 1, got 0"),
        (("sampling.sampler=heun",), "expected sampler ddpm, ddim, dpmsolver.*, got 'heun'"),
        (("model.image_size=0",), "expected model.image_size with space pixels, got 0"),
        (("model.image_size=15",), "expected a side that is a multiple of 2 for 2 channels, got 15"),
        (("model.head_dim=7",), "expected channels that are multiples of head_dim 7"),
        (("model.attention_stages=3",), "expected attention_stages of at most 2, got 3"),
        (("model.channels=[]",), "expected at least one value in model.channels"),
        ((*UPSAMPLER, "model.space=latents"), "expected model.space pixels for an upsampler, got latents"),
        ((*UPSAMPLER, "model.low_size=7"), "expected model.image_size that is a multiple of model.low_size 7, got 16"),
    ],
)
def test_settings_that_nothing_can_be_trained_with_are_refused(trained, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        trained.run("diffusion_decoder", f"run.state_dir={tmp_path / 'state'}", *settings)


def test_a_folder_without_scorer_is_refused(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "transformer")
    (model_of(home) / "scorer.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no scorer\.safetensors; train that part first"):
        home.run("diffusion_decoder")
