"""Two processes do what one does. Each starts three Pythons, so only one of them runs by default."""

import pytest
import torch
from helpers.training import RECORD_RANKS, launch_two

from dalle_mini_impl.checkpoint.parts import read_part

FEW = ("run.steps=6", "run.validate_every=3", "run.save_every=6", "run.sample_every=0")
PLAIN = ("optimizer.muon_learning_rate=0", "optimizer.clip=1e9")
"""Orthogonalised updates magnify rounding."""
FSQ = ("model.quantizer=fsq", "model.fsq_levels=[5, 7]", "model.codebook_size=35", "model.embed_dim=2")


def one_and_two(trained, tmp_path, stage, *settings):
    """The same stage in one process and in two."""
    one, two = (trained.copy(tmp_path / name, stage) for name in ("one", "two"))
    one.run(stage, *settings)
    launch_two("-m", f"dalle_mini_impl.train.{stage}", *two.arguments(stage, *settings))
    return one, two


def state(home, stage):
    return torch.load(home.folder / stage / "state.pt", weights_only=True)


def gradients(home, stage):
    """AdamW's mean of gradients as one vector: some parameters have none but rounding."""
    moments = state(home, stage)["optimizers"][0]["state"].values()
    return torch.cat([values["exp_avg"].flatten() for values in moments])


def compare(one, two, stage):
    """Every logged figure and the gradients agree; and there really were two processes."""
    assert [len(state(home, stage)["rng"]) for home in (one, two)] == [1, 2]
    assert len(one.log(stage)) == 8
    for line, expected in zip(two.log(stage), one.log(stage), strict=True):
        # Some figures are small differences of numbers near 1, whose last digits are rounded differently.
        assert line == pytest.approx(expected, rel=1e-5, abs=float(torch.finfo(torch.float32).eps))
    expected = gradients(one, stage)
    assert (gradients(two, stage) - expected).norm() <= 1e-4 * expected.norm()


def test_transformer_matches_one_process(trained, tmp_path):
    one, two = one_and_two(trained, tmp_path, "transformer", *FEW, *PLAIN)
    compare(one, two, "transformer")


@pytest.mark.slow
def test_transformer_with_accumulation_matches_one_process(trained, tmp_path):
    one, two = one_and_two(trained, tmp_path, "transformer", *FEW, *PLAIN, "run.accumulation=3")
    compare(one, two, "transformer")


@pytest.mark.slow
def test_transformer_that_is_told_matches_one_process(trained, tmp_path):
    home = trained.copy(tmp_path / "home")
    home.run("encode", "first_unchanged=true")
    told = ("augmented_share=0.5", "random_order=[0.4, 0.8]")
    one, two = one_and_two(home, tmp_path, "transformer", *FEW, *PLAIN, *told)
    compare(one, two, "transformer")


@pytest.mark.slow
def test_tuned_decoder_matches_one_process(trained, tmp_path):
    tune = ("tune.decoder_only=true", "tune.drawn_share=0.6", "tune.replaced_share=0.3")
    settings = (f"start_from={trained.folder}/model", *tune)
    one, two = one_and_two(trained, tmp_path, "image_tokenizer", *FEW, *PLAIN, *settings)
    compare(one, two, "image_tokenizer")


LFQ = ("model.quantizer=lfq", "model.codebook_size=32", "model.embed_dim=5", "commitment=0.1")
GAN = (
    "gan.weight=0.5",
    "gan.start=0.5",
    "gan.discriminator_warmup=2",
    "gan.channels=[5, 7]",
    "gan.r1=0.1",
    "gan.lecam=0.1",
    "perceptual=gradient-ssim",
)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [FSQ, LFQ, ("model.quantizer=simvq",), (*FSQ, *GAN)])
def test_image_tokenizer_matches_one_process(trained, tmp_path, settings):
    one, two = one_and_two(trained, tmp_path, "image_tokenizer", *FEW, *PLAIN, *settings)
    compare(one, two, "image_tokenizer")


@pytest.mark.slow
def test_two_processes_use_the_noise_of_two_passes(trained, tmp_path):
    # Each pass draws its own noise, whichever process makes it.
    settings = (*FEW, *PLAIN, "model.quantizer=gumbel", "model.likelihood=laplace", "dvae.kl_weight=20")
    one, two = (trained.copy(tmp_path / name, "image_tokenizer") for name in ("one", "two"))
    one.run("image_tokenizer", *settings, "run.accumulation=2")
    launch_two("-m", "dalle_mini_impl.train.image_tokenizer", *two.arguments("image_tokenizer", *settings))
    compare(one, two, "image_tokenizer")


@pytest.mark.slow
def test_scorer_matches_one_process(trained, tmp_path):
    one, two = one_and_two(trained, tmp_path, "scorer", *FEW, *PLAIN, "reconstructed_share=0")
    compare(one, two, "scorer")


@pytest.mark.slow
def test_scorer_with_accumulation_matches_one_process(trained, tmp_path):
    settings = (*FEW, *PLAIN, "reconstructed_share=0")
    one, two = (trained.copy(tmp_path / name, "scorer") for name in ("one", "two"))
    one.run("scorer", *settings)
    launch_two("-m", "dalle_mini_impl.train.scorer", *two.arguments("scorer", *settings, "run.accumulation=3"))
    compare(one, two, "scorer")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [("model.buckets=5",), ("model.kind=diffusion", "sampling.steps=2")])
def test_prior_matches_one_process(trained, tmp_path, settings):
    # With 5 buckets no limit of one is a value of one of the 28 pictures, which rounding would put beyond it.
    if "model.kind=diffusion" in settings:
        pytest.importorskip("diffusers")
    one, two = one_and_two(trained, tmp_path, "prior", *FEW, *PLAIN, *settings)
    compare(one, two, "prior")


@pytest.mark.slow
def test_diffusion_decoder_matches_one_process(trained, tmp_path):
    pytest.importorskip("diffusers")
    one, two = one_and_two(trained, tmp_path, "diffusion_decoder", *FEW, *PLAIN)
    compare(one, two, "diffusion_decoder")


@pytest.mark.slow
def test_encode_matches_one_process(trained, tmp_path):
    one, two = one_and_two(trained, tmp_path, "encode")
    for name in ("cache.json", "train/pairs.jsonl", "train/image_ids.npy", "validation/image_ids.npy"):
        assert (two.folder / "ids" / name).read_bytes() == (one.folder / "ids" / name).read_bytes()


@pytest.mark.slow
def test_codebook_is_the_same_in_both_processes_and_resumes_bit_for_bit(trained, tmp_path):
    # A learned codebook starts from vectors that are sampled per process: two processes cannot repeat what one drew.
    script = RECORD_RANKS
    whole, broken = (trained.copy(tmp_path / name, "image_tokenizer") for name in ("whole", "broken"))

    def launch(home, stop, *extra):
        # More entries than vectors: some restart at random in every step.
        arguments = home.arguments("image_tokenizer", "model.codebook_size=61", *extra)
        launch_two(script, str(home.folder), str(stop), "image_tokenizer", *arguments)

    launch(whole, -1)
    for step in range(10):
        books = [torch.load(whole.folder / f"{rank}-{step}.pt") for rank in (0, 1)]
        assert torch.equal(*books)
        assert books[0].norm(dim=-1).min() > 0.99
    launch(broken, 6)
    assert broken.log("image_tokenizer")[-1]["step"] == 5
    launch(broken, -1, "--resume")
    assert broken.log("image_tokenizer") == whole.log("image_tokenizer")
    identities = [read_part(home.folder / "model", "image_tokenizer").identity for home in (whole, broken)]
    assert identities[0] == identities[1]


@pytest.mark.slow
def test_processes_agree_on_the_steps_of_a_time_limit(trained, tmp_path):
    home = trained.copy(tmp_path / "home", "image_tokenizer")
    launch_two(
        "-m",
        "dalle_mini_impl.train.image_tokenizer",
        *home.arguments("image_tokenizer", *FSQ, "run.minutes=0.03", "run.steps=1"),
    )
    last = home.log("image_tokenizer")[-1]
    assert last["step"] > 1
    assert "validation_psnr" in last
