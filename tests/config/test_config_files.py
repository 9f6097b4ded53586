"""The files in `configs/`: they parse, build models, and fit together."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

import dalle_mini_impl
from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config import training as runs
from dalle_mini_impl.config.diffusion import DiffusionDecoderRun
from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.yaml_io import from_dict, load
from dalle_mini_impl.model.build import build_clip, build_transformer
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.masks import mask_matrix
from dalle_mini_impl.model.quantizers.learned import encoder_width
from dalle_mini_impl.train.stages import STAGES, load_settings

PACKAGE = Path(dalle_mini_impl.__file__).parent
ROOT = PACKAGE.parent
LAUNCHERS = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
COMPARISONS = sorted((ROOT / "configs/compare").glob("*.yaml"))  # tested in bench/test_compare.py
DALLE1 = sorted((ROOT / "configs/dalle1").glob("*.yaml"))  # transformers only
PRIORS = [ROOT / "configs/emoji/prior.yaml", ROOT / "configs/unclip/paper.yaml"]
DECODERS = [
    ROOT / "configs" / name for name in ("emoji/diffusion_decoder.yaml", "unclip/decoder.yaml", "unclip/upsampler.yaml")
]
CONFIGS = sorted({*(ROOT / "configs").glob("*/*.yaml")} - {*LAUNCHERS, *COMPARISONS, *DALLE1, *PRIORS, *DECODERS})

IMAGE_TOKENIZER_ONLY = {"vqgan", "dvae"}
"""Folders with the config of an image tokenizer only; its other stages are those of configs/emoji."""
FROM_EMOJI = "from_emoji"
"""Folder of stages that start from the shipped model, whose text tokenizer they keep."""
RUNS: dict[str, type] = {
    "image_tokenizer": runs.ImageTokenizerRun,
    "text_tokenizer": runs.TextTokenizerRun,
    "encode": runs.EncodeRun,
    "transformer": runs.TransformerRun,
    "scorer": runs.ScorerRun,
}


def test_every_config_folder_has_a_config_for_every_stage():
    folders = {path.parent.name for path in CONFIGS}
    assert "emoji" in folders
    for folder in folders:
        stages = {"image_tokenizer"} if folder in IMAGE_TOKENIZER_ONLY else set(RUNS)
        stages -= {"text_tokenizer"} if folder == FROM_EMOJI else set()
        assert {path.stem for path in CONFIGS if path.parent.name == folder} == stages, folder


@pytest.mark.parametrize(
    "path", [*CONFIGS, *DALLE1, *PRIORS, *DECODERS], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_config_parses_differs_from_the_defaults_and_has_no_absolute_path(path):
    kinds = {**dict.fromkeys(PRIORS, runs.PriorRun), **dict.fromkeys(DECODERS, DiffusionDecoderRun)}
    kind = kinds.get(path) or RUNS.get(path.stem, runs.TransformerRun)
    config: object = load(kind, path)
    assert config != kind()
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not [word for word in line.split() if word.startswith(("/", "~"))], line
    assert path.read_text(encoding="utf-8").startswith("# "), "a comment says what the file is for"
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize(
    ("name", "processes", "machines"),
    [("cpu-2", 2, 1), ("gpu", 1, 1), ("gpus-8", 8, 1), ("gpus-8-fsdp", 8, 1), ("gpus-nodes-fsdp", 16, 2)],
)
def test_accelerate_reads_its_launcher_configs(name, processes, machines):
    assert len(LAUNCHERS) == 5
    config = load_config_from_file(str(ROOT / f"configs/accelerate/{name}.yaml"))
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (processes, machines, "no")


@pytest.mark.parametrize("name", sorted(IMAGE_TOKENIZER_ONLY))
def test_alternative_image_tokenizers_fit_the_emoji_stages(name):
    alternative = load(runs.ImageTokenizerRun, ROOT / "configs" / name / "image_tokenizer.yaml").model
    emoji = load(runs.ImageTokenizerRun, ROOT / "configs/emoji/image_tokenizer.yaml").model
    expected = (emoji.grid, emoji.codebook_size, emoji.image_size)
    assert (alternative.grid, alternative.codebook_size, alternative.image_size) == expected
    with torch.device("meta"):
        tokenizer = ImageTokenizer(alternative)
        assert tokenizer.encoder(torch.zeros(2, 3, *emoji.size)).shape == (
            2,
            encoder_width(alternative),
            *alternative.grid,
        )


@pytest.mark.parametrize("path", DALLE1, ids=lambda path: path.stem)
def test_dalle_1_configs_have_the_masks_and_the_recipe_of_the_paper(path):
    run = load(runs.TransformerRun, path)
    stream = StreamConfig(text_length=256, text_vocab=16384, grid=(32, 32), image_vocab=8192)
    small = build_transformer(dataclasses.replace(run.model, n_head=1, n_embd=2), stream)
    masks = {kind: mask_matrix(kind, 257, (32, 32), 11) for kind in ("row", "column", "conv")}
    for layer, block in enumerate(small.blocks):
        kind = "conv" if layer == run.model.n_layer - 1 else "column" if layer % 4 == 1 else "row"
        assert torch.equal(block.attention.attention_mask.allowed, masks[kind])
    assert (run.image_weight, run.bpe_dropout) == (7, 0.1)
    assert run.caption_dropout == run.id_corruption == run.id_dropout == 0
    assert (run.sampling.temperature, run.sampling.guidance, run.sampling.rank) == (1, 1, "clip")
    assert (run.optimizer.betas, run.optimizer.weight_decay, run.optimizer.clip) == ((0.9, 0.96), 0.045, 4)
    assert run.plateau.halvings == 5
    if path.stem == "12b":
        with torch.device("meta"):
            transformer = build_transformer(run.model, stream)
        assert sum(p.numel() for p in transformer.blocks.parameters()) == pytest.approx(12.0e9, rel=0.01)
        assert sum(p.numel() for p in transformer.parameters()) == 12_294_872_832
        assert (run.run.batch_size, run.optimizer.learning_rate, run.optimizer.warmup_steps) == (1024, 4.5e-4, 5000)


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in CONFIGS if path.parent.name not in {*IMAGE_TOKENIZER_ONLY, FROM_EMOJI}}),
    ids=lambda folder: folder.name,
)
def test_configs_of_a_folder_build_models_that_fit_together(folder):
    configs: dict[str, Any] = {name: load(kind, folder / f"{name}.yaml") for name, kind in RUNS.items()}
    image = configs["image_tokenizer"].model
    text = configs["text_tokenizer"]
    vocab = text.vocab_size
    stream = StreamConfig(
        text_length=configs["transformer"].text_length,
        text_vocab=vocab,
        grid=image.grid,
        image_vocab=image.codebook_size,
        patch=configs["transformer"].model.patch,
    )
    with torch.device("meta"):
        tokenizer = ImageTokenizer(image)
        transformer = build_transformer(configs["transformer"].model, stream)
        clip = build_clip(configs["scorer"].model, vocab, pad_id=0, eos_id=3)
        pixels = torch.zeros(2, 3, image.image_size, image.image_size)
        assert tokenizer.encoder(pixels).shape == (2, encoder_width(image), *image.grid)
        assert transformer.vocab_size == vocab + stream.text_length + image.codebook_size
        h, w = image.grid
        assert transformer.max_length == 1 + stream.text_length + h * w // stream.patch**2
        side = configs["scorer"].model.image_size
        assert clip.encode_image(torch.zeros(2, 3, side, side)).shape == (2, configs["scorer"].model.embed_dim)

    assert configs["transformer"].sampling.top_k <= image.codebook_size
    assert configs["transformer"].cache == configs["encode"].out
    assert configs["transformer"].text_tokenizer == configs["scorer"].text_tokenizer == text.out
    settings = [configs[name].run for name in ("image_tokenizer", "transformer", "scorer")]
    assert len({run.model_dir for run in settings} | {configs["encode"].model_dir}) == 1
    assert len({run.state_dir for run in settings}) == 3
    for run in settings:
        assert run.batch_size % run.accumulation == 0


def test_the_emoji_prior_fits_the_stages_before_it():
    prior = load(runs.PriorRun, ROOT / "configs/emoji/prior.yaml")
    scorer = load(runs.ScorerRun, ROOT / "configs/emoji/scorer.yaml")
    assert prior.run.model_dir == scorer.run.model_dir
    assert prior.run.state_dir != scorer.run.state_dir
    assert (prior.data, prior.language_weights) == (scorer.data, scorer.language_weights)
    assert prior.model.text_length == scorer.model.text_length


def test_the_emoji_diffusion_decoder_fits_the_stages_before_it():
    decoder = load(DiffusionDecoderRun, ROOT / "configs/emoji/diffusion_decoder.yaml")
    scorer = load(runs.ScorerRun, ROOT / "configs/emoji/scorer.yaml")
    image = load(runs.ImageTokenizerRun, ROOT / "configs/emoji/image_tokenizer.yaml")
    assert decoder.run.model_dir == scorer.run.model_dir == image.run.model_dir
    assert decoder.run.state_dir not in (scorer.run.state_dir, image.run.state_dir)
    assert (decoder.data, decoder.language_weights) == (scorer.data, scorer.language_weights)
    assert decoder.model.text_length == scorer.model.text_length
    assert all(side % 2 ** (len(decoder.model.channels) - 1) == 0 for side in image.model.grid)


def test_configs_that_start_from_the_shipped_model_fit_it_and_each_other():
    configs: dict[str, Any] = {
        stage.file_name: load_settings(stage, str(ROOT / f"configs/{FROM_EMOJI}/{stage.file_name}.yaml"))
        for stage in STAGES.values()
        if stage.in_all_presets and stage.file_name != "text_tokenizer"
    }
    for name in ("image_tokenizer", "transformer", "scorer"):
        part = read_part(find_checkpoint("emoji"), name, weights=False)
        values = part.config["transformer"] if name == "transformer" else part.config
        assert configs[name].model == from_dict(type(configs[name].model), values)
        assert configs[name].run.model_dir == "runs/mine/model"
        assert configs[name].run.state_dir == f"runs/mine/{name}"
    assert configs["transformer"].text_length == 20
    assert configs["transformer"].cache == configs["encode"].out
    assert configs["encode"].model_dir == "emoji"


def test_every_stage_documents_its_command():
    for stage in RUNS:
        source = (PACKAGE / "train" / f"{stage}.py").read_text(encoding="utf-8")
        assert f"\ndalle train {stage.replace('_', '-')} --config configs/emoji/{stage}.yaml\n" in source
        assert 'if __name__ == "__main__":' in source
