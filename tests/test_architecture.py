"""Rules that the code of the whole package keeps."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import all_commands

import dalle_mini_impl

PACKAGE = Path(dalle_mini_impl.__file__).parent
ROOT = PACKAGE.parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
"""Path inside the package -> file."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
"""Without the docstring."""
LONG_FUNCTIONS = {
    f"train/{stage}.py:main" for stage in ("transformer", "image_tokenizer", "scorer", "prior", "diffusion_decoder")
}
"""Trainers are written as one function, to be read from top to bottom."""
EXTRA_ROOMS = {"serve/": "fastapi", "bench/plain_service.py": "fastapi"}
"""Where a path begins -> the package without which what is there cannot be imported; commands name its extra."""
NETWORK_LIBRARIES = {
    "aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "requests", "smtplib", "socket", "urllib", "urllib3",
    "websockets", "wandb",
}  # fmt: skip


@functools.cache
def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> Iterator[str]:
    """Names of all modules that a file imports, at the top or inside functions."""
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def own_imports(name: str) -> set[str]:
    """Modules of this package that a module imports, as `folder.module`."""
    prefix = "dalle_mini_impl."
    return {module.removeprefix(prefix) for module in imported_modules(MODULES[name]) if module.startswith(prefix)}


def layers_of_contract() -> list[list[str]]:
    """Folders of each layer, highest layer first, from the contract in the clone's pyproject.toml."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the contract is in the clone's pyproject.toml")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[[tool.importlinter.contracts]]")[2].partition("\nlayers = [")[2].partition("]")[0]
    return [layer.split(" | ") for layer in re.findall(r'"([^"]+)"', table)]


def run_in_new_process(code: str) -> str:
    """Run Python code in a new process, which must succeed, and return what it prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- layers


def test_import_contract_holds(monkeypatch):
    pytest.importorskip("importlinter")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the contract is in the clone's pyproject.toml")
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


def test_every_folder_is_in_the_contract():
    folders = {name.split("/")[0] for name in MODULES if "/" in name}
    assert folders == {folder for layer in layers_of_contract() for folder in layer}


def test_every_folder_imports_lower_layers_only():
    lower: set[str] = set()
    for layer in reversed(layers_of_contract()):
        for folder in layer:
            for name in MODULES:
                if name.startswith(f"{folder}/"):
                    imported = {module.split(".")[0] for module in own_imports(name)} - {folder}
                    assert imported <= lower, f"{name} imports {imported - lower}, which are not below {folder}"
        lower |= set(layer)


def test_modules_to_be_read_alone_import_little():
    assert not {module for module in own_imports("model/transformer.py") if "tokenizer" in module or "images" in module}
    assert own_imports("model/attention.py") == {"model.kv_cache", "model.masks"}
    assert own_imports("model/kv_cache.py") == {"model.masks"}
    assert own_imports("model/masks.py") == {"util.errors"}
    assert own_imports("sampling/next_ids.py") <= {"config.sampling", "util.errors"}
    assert own_imports("evaluate/metrics.py") == set()
    assert own_imports("util/errors.py") == set()


def test_configs_are_read_without_heavy_libraries():
    for name, path in MODULES.items():
        if name.startswith("config/"):
            heavy = {module.split(".")[0] for module in imported_modules(path)} & {
                "torch",
                "numpy",
                "PIL",
                "accelerate",
            }
            assert not heavy, f"{name} imports {heavy}"


# --- imports that must be late


def test_help_of_every_command_imports_no_heavy_library():
    code = (
        "import sys, dalle_mini_impl, dalle_mini_impl.cli\n"
        "dir(dalle_mini_impl)\n"
        "from click.testing import CliRunner\n"
        f"for words in {[words.split()[1:] for words in all_commands()]}:\n"
        "    assert CliRunner().invoke(dalle_mini_impl.cli.dalle, [*words, '--help']).exit_code == 0, words\n"
        "heavy = {'torch', 'numpy', 'PIL', 'sentencepiece', 'accelerate', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run_in_new_process(code)


def test_generation_imports_no_library_that_only_training_needs():
    code = (
        "import sys\n"
        "from dalle_mini_impl.pipeline.dalle_mini import DalleMini\n"
        "DalleMini.from_pretrained('emoji', 'cpu').generate('a cat', candidates=1)\n"
        "slow = {'vector_quantize_pytorch', 'einx', 'torch._dynamo', 'accelerate', 'sympy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    run_in_new_process(code)


def test_trained_image_tokenizers_import_no_quantizer_library():
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
    run_in_new_process(code)


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
    assert run_in_new_process(code) == ""


def test_every_module_can_be_imported():
    missing = tuple(room for room, package in EXTRA_ROOMS.items() if importlib.util.find_spec(package) is None)
    for name in MODULES:
        if not name.endswith("__main__.py") and not name.startswith(missing):
            __import__("dalle_mini_impl." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))


# --- network and pickle


def test_only_few_modules_import_a_network_library():
    allowed = {
        "checkpoint/hub.py": {"huggingface_hub"},
        "serve/server.py": {"socket"},  # binds it
        "bench/serve.py": {"http"},  # speaks to the services that it has started
        "bench/plain_service.py": {"socket"},
    }
    for name, path in MODULES.items():
        found = {module.split(".")[0] for module in imported_modules(path)} & NETWORK_LIBRARIES
        assert found == allowed.get(name, set()), name


def test_the_hub_library_is_imported_only_for_names_on_a_hub():
    code = (
        "import sys\n"
        "from dalle_mini_impl.checkpoint import publish\nfrom dalle_mini_impl import ImageTokenizer\n"
        "ImageTokenizer.from_pretrained('emoji')\n"
        "assert 'huggingface_hub' not in sys.modules"
    )
    run_in_new_process(code)


def test_no_pickle_is_read():
    for name, path in MODULES.items():
        for call in (node for node in ast.walk(syntax_tree(path)) if isinstance(node, ast.Call)):
            function = ast.unparse(call.func)
            keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert function not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), name
            if function == "torch.load" and name == "interop/safe_pickle.py":  # builds tensors only
                assert keywords["pickle_module"] == "_PickleModule"
            elif function == "torch.load":
                assert keywords.get("weights_only", "True") == "True", name
            assert keywords.get("allow_pickle", "False") == "False", name


# --- size and names


def test_modules_have_docstrings_and_bounded_length():
    for name, path in MODULES.items():
        assert ast.get_docstring(syntax_tree(path)), f"{name} has no docstring"
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= MAX_FILE_LINES, f"{name} has {length} lines"


def test_functions_have_bounded_length():
    for name, path in MODULES.items():
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and f"{name}:{node.name}" not in LONG_FUNCTIONS:
                length = lines_of(node) - (lines_of(node.body[0]) if ast.get_docstring(node) else 0)
                assert length <= MAX_FUNCTION_LINES, f"{name}:{node.name} has {length} lines without its docstring"


def lines_of(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_class_names_are_unique():
    places: dict[str, list[str]] = defaultdict(list)
    for name, path in MODULES.items():
        for node in syntax_tree(path).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


def test_tokenizers_is_a_folder_of_data():
    # A package of this name would hide the tokenizers library.
    assert not list((ROOT / "tokenizers").rglob("*.py"))
