"""DALLEs of the real dalle-pytorch 1.6.6 with random weights, beside what is imported; `make peers` installs it."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dalle_mini_impl import ImageTokenizer
from dalle_mini_impl.bench.peers import import_dalle_pytorch
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import Prompt, generate

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dalle_pytorch") is None, reason="dalle-pytorch is not installed"
)

VAE_PARAMS = {"image_size": 32, "num_layers": 3, "num_tokens": 61, "codebook_dim": 7, "hidden_dim": 11}
TEXT_LENGTH = 5
TEXT_IDS = 41 + TEXT_LENGTH
HPARAMS = {"num_text_tokens": 41, "text_seq_len": TEXT_LENGTH, "dim": 20, "depth": 4, "heads": 3, "dim_head": 14}
"""3 × 14 is not 20, and 2 of 14 channels are not rotated."""
GRID = (4, 4)
CAPTION = [7, 3, 11]

OPTIONS = {
    "default": {},
    "learned positions": {"rotary_emb": False},
    "no token shift": {"shift_tokens": False},
    "sandwich norms": {"sandwich_norm": True},
    "stable": {"stable": True},
    "reversible": {"reversible": True},
    "shared layers": {"shared_attn_ids": (0, 1, 0, 1), "shared_ff_ids": (0, 0, 1)},
    "shared embeddings": {"share_input_output_emb": True},
    "rows and columns": {"attn_types": ("full", "axial_row", "axial_col")},
    "convolutional": {"attn_types": ("conv_like", "full")},
    "optimised for inference": {"attn_types": ("axial_row", "axial_col"), "optimize_for_inference": True},
    "all at once, learned positions": {
        "rotary_emb": False, "sandwich_norm": True, "stable": True, "reversible": True,
        "share_input_output_emb": True, "shared_ff_ids": (0, 1),
        "attn_types": ("full", "axial_row", "axial_col", "conv_like"),
    },
    "all at once, rotary positions": {
        "sandwich_norm": True, "stable": True, "reversible": True, "shift_tokens": False,
        "share_input_output_emb": True, "shared_attn_ids": (0, 1, 2, 0), "dim": 22,
        "attn_types": ("axial_col", "conv_like", "full"),
    },
}  # fmt: skip


def make_dalle(seed=0, **options):
    """A DALLE with random weights, such that every tensor has an effect."""
    package = import_dalle_pytorch()
    model = package.DALLE(vae=package.DiscreteVAE(**VAE_PARAMS), **{**HPARAMS, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("scale") or ((".norm" in name or name.startswith("to_logits.0")) and "weight" in name):
                value.copy_(1 + 0.3 * noise)
            elif value.ndim > 1:
                value.copy_(noise * (0.7 if "emb" in name and "linear" not in name else 1.5 * value.shape[1] ** -0.5))
            else:
                value.copy_(0.3 * noise)
    return model.eval()


def save_as_dalle_pt(model, path, **options):
    """Write a file as the package's training command does."""
    hparams = {**HPARAMS, "loss_img_weight": 7, "attn_dropout": 0.0, "ff_dropout": 0.0, **options}
    content = {
        "hparams": hparams,
        "vae_params": VAE_PARAMS,
        "vae_class_name": "DiscreteVAE",
        "weights": model.state_dict(),
        "epoch": 3,
        "version": "1.6.6",
        "opt_state": {"state": {}},
    }
    torch.save(content, path)


def read_transformer(folder):
    """Transformer and stream of a folder that has no text tokenizer."""
    part = read_part(folder, "transformer")
    stream = from_dict(StreamConfig, part.config["stream"])
    transformer = build_transformer(from_dict(TransformerConfig, part.config["transformer"]), stream)
    transformer.load_state_dict(part.tensors)
    return transformer.eval(), Stream(stream)


def padded(captions):
    return torch.tensor([caption + [0] * (TEXT_LENGTH - len(caption)) for caption in captions])


def random_image_ids(count, seed=1):
    return torch.randint(61, (count, 16), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_same_logits(original, transformer, stream):
    captions = [CAPTION, [], [1, 2, 3, 4, 5]]
    image_ids = random_image_ids(3)
    expected = original(padded(captions), image_ids)
    ids = stream.join(stream.prefix(captions), image_ids.view(3, *GRID))[:, :-1]
    logits = transformer.logits(transformer(ids))
    for positions, vocabulary in (
        (slice(None, TEXT_LENGTH), slice(None, TEXT_IDS)),
        (slice(TEXT_LENGTH, None), slice(TEXT_IDS, None)),
    ):
        torch.testing.assert_close(
            logits[:, positions, vocabulary], expected[:, positions, vocabulary], atol=1e-4, rtol=0
        )
    assert logits[:, TEXT_LENGTH:, TEXT_IDS:].std() > 0.3


@torch.no_grad()
def greedy_picture(original, guidance):
    """The original's greedy image ids, without a cache; guidance takes a second forward pass without the caption."""
    ids = torch.zeros(1, 0, dtype=torch.int64)
    for _ in range(16):
        conditional, unconditional = (original(padded([caption]), ids)[0, -1, TEXT_IDS:] for caption in (CAPTION, []))
        logits = unconditional + guidance * (conditional - unconditional)
        ids = torch.cat([ids, logits.argmax().view(1, 1)], 1)
    return ids.view(GRID)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_and_greedy_ids_match_dalle_pytorch(run, options):
    original = make_dalle(**options)
    save_as_dalle_pt(original, "dalle.pt", **options)
    run("import", "dalle-pytorch", "dalle.pt", "--out", "model")
    transformer, stream = read_transformer(Path("model"))
    assert_same_logits(original, transformer, stream)
    image_tokenizer = ImageTokenizer.from_pretrained("model")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(image_tokenizer.encode(2 * pixels - 1).flatten(1), original.vae.get_codebook_indices(pixels))
    for guidance in (1.0, 3.0):
        settings = SamplingConfig(temperature=0.0, guidance=guidance)
        sampled = generate(transformer, stream, Prompt(CAPTION), [0], settings)
        assert torch.equal(sampled.image_ids[0], greedy_picture(original, guidance))
        assert len(sampled.image_ids.unique()) > 3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dalle_pytorch_loads_an_exported_model_with_the_same_logits(run, options):
    original = make_dalle(**options)
    save_as_dalle_pt(original, "dalle.pt", **options)
    run("import", "dalle-pytorch", "dalle.pt", "--out", "model")
    run("export", "dalle-pytorch", "model", "--out", "exported.pt")
    package = import_dalle_pytorch()
    content = torch.load("exported.pt", weights_only=True)
    model = package.DALLE(vae=package.DiscreteVAE(**content["vae_params"]), **content["hparams"])
    model.load_state_dict(content["weights"])
    model.eval()
    with torch.no_grad():
        expected = original(padded([CAPTION]), random_image_ids(1))
        torch.testing.assert_close(model(padded([CAPTION]), random_image_ids(1)), expected, atol=1e-4, rtol=0)
    assert torch.equal(model.vae.decode(random_image_ids(1)), original.vae.decode(random_image_ids(1)))
    size = sum(value.numel() * value.element_size() for value in content["weights"].values())
    assert Path("exported.pt").stat().st_size < 1.4 * size  # nothing is stored twice; names take some space
