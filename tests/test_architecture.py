"""What holds for the code as a whole."""

import ast
import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from helpers.commands import all_commands

import dalle_mini_impl
from dalle_mini_impl.config import training as runs
from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.model.build import build_clip, build_transformer
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.masks import mask_matrix
from dalle_mini_impl.model.quantizers.learned import encoder_width

PACKAGE = Path(dalle_mini_impl.__file__).parent
ROOT = PACKAGE.parent
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
LAUNCHERS = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
COMPARISONS = sorted((ROOT / "configs/compare").glob("*.yaml"))  # tested in test_compare.py
DALLE1 = sorted((ROOT / "configs/dalle1").glob("*.yaml"))  # transformers alone
CONFIGS = sorted({*(ROOT / "configs").glob("*/*.yaml")} - {*LAUNCHERS, *COMPARISONS, *DALLE1})

ALONE = {"vqgan", "dvae"}
"""Folders of configs with an image tokenizer alone; the other stages are those of configs/emoji."""

LONGEST_FILE = 400
LONGEST_FUNCTION = 80
LONG_FUNCTIONS = {"train/transformer.py:main", "train/image_tokenizer.py:main", "train/scorer.py:main"}
"""Trainers are read from top to bottom, in one piece."""
NETWORK = {
    "aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "requests", "smtplib", "socket", "urllib", "urllib3",
    "websockets", "wandb",
}  # fmt: skip
RUNS = {
    "image_tokenizer": runs.ImageTokenizerRun,
    "text_tokenizer": runs.TextTokenizerRun,
    "encode": runs.EncodeRun,
    "transformer": runs.TransformerRun,
    "scorer": runs.ScorerRun,
}


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Names of all modules a file imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


# --- imports


def test_imports_go_down_only(monkeypatch):
    pytest.importorskip("importlinter")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the contract is in the checkout's pyproject.toml")
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


def run_fresh(code):
    """Run code in a Python of its own and give what it prints; it must succeed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, dalle_mini_impl, dalle_mini_impl.cli\n"
        "dir(dalle_mini_impl)\n"
        "from click.testing import CliRunner\n"
        f"for words in {[words.split()[1:] for words in all_commands()]}:\n"
        "    assert CliRunner().invoke(dalle_mini_impl.cli.dalle, [*words, '--help']).exit_code == 0, words\n"
        "heavy = {'torch', 'numpy', 'PIL', 'sentencepiece', 'accelerate', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run_fresh(code)


def test_drawing_waits_for_no_library_that_only_training_needs():
    code = (
        "import sys\n"
        "from dalle_mini_impl.pipeline.dalle_mini import DalleMini\n"
        "DalleMini.from_pretrained('emoji', 'cpu').generate('a cat', candidates=1)\n"
        "slow = {'vector_quantize_pytorch', 'einx', 'torch._dynamo', 'accelerate', 'sympy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    run_fresh(code)


def test_image_tokenizers_that_are_only_used_wait_for_no_library():
    code = (
        "import sys, torch\n"
        "from dalle_mini_impl.config.model import ImageTokenizerConfig\n"
        "from dalle_mini_impl.model.image_tokenizer import ImageTokenizer\n"
        "sizes = {'fsq': (105, 3), 'lfq': (64, 6)}\n"
        "for name in ('vq', 'fsq', 'lfq', 'simvq', 'gumbel'):\n"
        "    size, dim = sizes.get(name, (61, 5))\n"
        "    config = ImageTokenizerConfig(image_size=16, channels=(7,), quantizer=name, codebook_size=size,\n"
        "                                  embed_dim=dim, fsq_levels=(7, 5, 3))\n"
        "    tokenizer = ImageTokenizer(config, commitment=None).eval()\n"
        "    tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 16, 16)))\n"
        "assert not {'vector_quantize_pytorch', 'einx'} & set(sys.modules)"
    )
    run_fresh(code)


def test_importing_has_no_side_effects():
    code = (
        "import random, torch\n"
        "random.seed(0); torch.manual_seed(0)\n"
        "def state():\n"
        "    return (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), random.getstate(),\n"
        "            torch.get_rng_state().tolist(), torch.get_float32_matmul_precision())\n"
        "before = state()\n"
        "import dalle_mini_impl.pipeline.dalle_mini\n"
        "assert state() == before"
    )
    assert run_fresh(code) == ""


def test_only_the_hub_module_imports_a_network_library():
    for name, path in MODULES.items():
        allowed = {"huggingface_hub"} if name == "checkpoint/hub.py" else set()  # imported only for hf:USER/REPO names
        assert {module.split(".")[0] for module in imported(path)} & NETWORK == allowed, name


def test_the_hub_waits_until_it_is_named():
    code = (
        "import sys\n"
        "from dalle_mini_impl.checkpoint import publish\nfrom dalle_mini_impl import ImageTokenizer\n"
        "ImageTokenizer.from_pretrained('emoji')\n"
        "assert 'huggingface_hub' not in sys.modules"
    )
    run_fresh(code)


def test_blocks_can_be_lifted_out():
    own = {name: {m for m in imported(MODULES[name]) if m.startswith("dalle_mini_impl")} for name in MODULES}
    assert not {m for m in own["model/transformer.py"] if "tokenizer" in m or "images" in m}
    assert own["model/attention.py"] == {"dalle_mini_impl.model.kv_cache", "dalle_mini_impl.model.masks"}
    assert own["model/kv_cache.py"] == {"dalle_mini_impl.model.masks"}
    assert own["model/masks.py"] == {"dalle_mini_impl.util.errors"}
    assert own["evaluate/metrics.py"] == set()
    assert own["util/errors.py"] == set()
    assert not {
        m
        for m in own["sampling/next_ids.py"]
        if m not in ("dalle_mini_impl.config.sampling", "dalle_mini_impl.util.errors")
    }
    heavy = {"torch", "numpy", "PIL", "accelerate"}
    assert not heavy & set(imported(MODULES["config/model.py"]))
    assert not heavy & set(imported(MODULES["config/training.py"]))


def test_no_pickle_is_read():
    for name, path in MODULES.items():
        for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
            function = ast.unparse(call.func)
            keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert function not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), name
            if function == "torch.load" and name == "interop/safe_pickle.py":  # builds nothing but tensors
                assert keywords["pickle_module"] == "_PickleModule"
            elif function == "torch.load":
                assert keywords.get("weights_only", "True") == "True", name
            assert keywords.get("allow_pickle", "False") == "False", name


def test_tokenizers_is_a_folder_of_data():
    # A package of that name would shadow the tokenizers library
    assert not list((ROOT / "tokenizers").rglob("*.py"))


# --- size and shape


def test_modules_have_docstrings_and_bounded_length():
    for name, path in MODULES.items():
        assert ast.get_docstring(tree(path)), f"{name} has no docstring"
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= LONGEST_FILE, f"{name} has {length} lines"


def test_functions_have_bounded_length():
    for name, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                and f"{name}:{node.name}" not in LONG_FUNCTIONS
            ):
                length = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node):
                    length -= node.body[0].end_lineno - node.body[0].lineno + 1
                assert length <= LONGEST_FUNCTION, f"{name}:{node.name} has {length} lines without its docstring"


def test_every_module_can_be_imported():
    names = ["dalle_mini_impl." + name[:-3].replace("/", ".").removesuffix(".__init__") for name in MODULES]
    for name in names:
        if not name.endswith("__main__"):
            __import__(name)


# --- configs


def test_there_are_configs_for_every_stage():
    folders = {path.parent.name for path in CONFIGS}
    assert "emoji" in folders
    for folder in folders:
        stages = {"image_tokenizer"} if folder in ALONE else set(RUNS)
        assert {path.stem for path in CONFIGS if path.parent.name == folder} == stages, folder


@pytest.mark.parametrize("path", [*CONFIGS, *DALLE1], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configs_parse_and_name_no_place_of_one_machine(path):
    kind = RUNS.get(path.stem, runs.TransformerRun)
    config = load(kind, path)
    assert config != kind()
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not [word for word in line.split() if word.startswith(("/", "~"))], line
    assert path.read_text(encoding="utf-8").startswith("# "), "says what it is for"
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize(("name", "processes"), [("cpu-2", 2), ("gpu", 1), ("gpus-8", 8), ("gpus-8-fsdp", 8)])
def test_accelerate_reads_its_configs(name, processes):
    assert len(LAUNCHERS) == 4
    config = load_config_from_file(str(ROOT / f"configs/accelerate/{name}.yaml"))
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (processes, 1, "no")


@pytest.mark.parametrize("name", sorted(ALONE))
def test_image_tokenizers_alone_fit_the_other_stages(name):
    ours = load(runs.ImageTokenizerRun, ROOT / "configs" / name / "image_tokenizer.yaml").model
    other = load(runs.ImageTokenizerRun, ROOT / "configs/emoji/image_tokenizer.yaml").model
    assert (ours.grid, ours.codebook_size, ours.image_size) == (other.grid, other.codebook_size, other.image_size)
    with torch.device("meta"):
        tokenizer = ImageTokenizer(ours)
        assert tokenizer.encoder(torch.zeros(2, 3, 64, 64)).shape == (2, encoder_width(ours), *ours.grid)


@pytest.mark.parametrize("path", DALLE1, ids=lambda path: path.stem)
def test_dalle_1_has_its_masks_and_its_recipe(path):
    run = load(runs.TransformerRun, path)
    stream = StreamConfig(text_length=256, text_vocab=16384, grid=(32, 32), image_vocab=8192)
    narrow = build_transformer(dataclasses.replace(run.model, n_head=1, n_embd=2), stream)
    masks = {kind: mask_matrix(kind, 257, (32, 32), 11) for kind in ("row", "column", "conv")}
    for layer, block in enumerate(narrow.blocks):
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
    "folder", sorted({path.parent for path in CONFIGS if path.parent.name not in ALONE}), ids=lambda folder: folder.name
)
def test_configs_build_and_fit_together(folder):
    configs = {name: load(kind, folder / f"{name}.yaml") for name, kind in RUNS.items()}
    image, text = configs["image_tokenizer"].model, configs["text_tokenizer"]
    vocab = text.vocab_size
    stream = StreamConfig(
        text_length=configs["transformer"].text_length,
        text_vocab=vocab,
        grid=image.grid,
        image_vocab=image.codebook_size,
    )
    with torch.device("meta"):
        tokenizer = ImageTokenizer(image)
        transformer = build_transformer(configs["transformer"].model, stream)
        clip = build_clip(configs["scorer"].model, vocab, pad_id=0, eos_id=3)
        pixels = torch.zeros(2, 3, image.image_size, image.image_size)
        assert tokenizer.encoder(pixels).shape == (2, encoder_width(image), *image.grid)
        assert transformer.head.weight.shape[0] == vocab + stream.text_length + image.codebook_size
        assert transformer.max_length == 1 + stream.text_length + image.grid[0] * image.grid[1]
        side = configs["scorer"].model.image_size
        assert clip.encode_image(torch.zeros(2, 3, side, side)).shape == (2, configs["scorer"].model.embed_dim)

    assert configs["transformer"].sampling.top_k <= image.codebook_size
    assert configs["transformer"].cache == configs["encode"].out
    assert configs["transformer"].text_tokenizer == configs["scorer"].text_tokenizer == text.out
    runs_ = [configs[name].run for name in ("image_tokenizer", "transformer", "scorer")]
    assert len({run.model_dir for run in runs_} | {configs["encode"].model_dir}) == 1
    assert len({run.state_dir for run in runs_}) == 3
    for run in runs_:
        assert run.batch_size % run.accumulation == 0


def test_every_stage_says_how_it_is_started():
    for stage in RUNS:
        source = MODULES[f"train/{stage}.py"].read_text(encoding="utf-8")
        assert f"-m dalle_mini_impl.train.{stage} --config configs/emoji/{stage}.yaml" in source
        assert 'if __name__ == "__main__":' in source
