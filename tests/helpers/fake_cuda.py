"""Runs parts of the package on fake tensors of a GPU that does not exist; a program, because PyTorch is altered for it.

python -m helpers.fake_cuda LIBRARY HOME CHECK…

Fake tensors have a shape, a type and a device but no values. An operation on tensors of two devices is an error, as on
a real GPU. Whatever brings a value from the device, for which a program on a real GPU would wait, is counted.

LIBRARY is `stand_in_cuda.cpp`, compiled. HOME is a copy of a folder in which all five stages were trained. A CHECK is a
name in `CHECKS`; `tensor:CHECK` and `wait:CHECK` plant a tensor on the wrong device, or a wait, in the transformer. For
each a line of JSON is printed: the modules of the package that waited, in order, and the error if there was one.
"""

import ctypes
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

for library in ("libc10.so", "libtorch_cpu.so"):  # before torch itself, which looks for a GPU only once
    ctypes.CDLL(str(Path(importlib.util.find_spec("torch").origin).parent / "lib" / library), mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL(sys.argv[1])

import torch  # noqa: E402
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# In inference mode some operations pass fake tensors by.
torch.inference_mode = lambda mode=True: torch.no_grad() if mode else nullcontext()  # type: ignore[return-value]

import dalle_mini_impl  # noqa: E402
from dalle_mini_impl.config.sampling import PriorSamplingConfig, SamplingConfig  # noqa: E402
from dalle_mini_impl.config.yaml_io import load  # noqa: E402
from dalle_mini_impl.model import attention  # noqa: E402
from dalle_mini_impl.model.build import load_transformer  # noqa: E402
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer  # noqa: E402
from dalle_mini_impl.model.masks import AttentionMask  # noqa: E402
from dalle_mini_impl.model.prior import ARPrior  # noqa: E402
from dalle_mini_impl.model.stream import Stream  # noqa: E402
from dalle_mini_impl.painting.painter import Painter, PaintSettings  # noqa: E402
from dalle_mini_impl.sampling.generate import Prompt, generate  # noqa: E402
from dalle_mini_impl.sampling.graph_decoder import GraphDecoder, StaticBatch  # noqa: E402
from dalle_mini_impl.sampling.likelihood import log_likelihood  # noqa: E402
from dalle_mini_impl.scorer.scorer import Scorer  # noqa: E402
from dalle_mini_impl.train import image_tokenizer, prior, scorer, transformer  # noqa: E402
from dalle_mini_impl.train.decoder_tuning import DecoderTuning  # noqa: E402
from dalle_mini_impl.train.losses.stream import StreamLoss  # noqa: E402
from dalle_mini_impl.train.shared import loop  # noqa: E402
from dalle_mini_impl.train.stages import STAGES  # noqa: E402
from dalle_mini_impl.unclip.prior import draw_components  # noqa: E402
from helpers.models import make_transformer  # noqa: E402

CUDA = torch.device("cuda:0")
PACKAGE = str(Path(dalle_mini_impl.__file__).parent)
HOME = Path(sys.argv[2])
READERS = [
    sys.modules[f"{dalle_mini_impl.__name__}.{name}"]
    for name in ("model.image_tokenizer", "model.build", "scorer.scorer")
]
"""Modules that read weights from files."""
VALUES = ("equal", "masked_select", "bincount", "_unique2")
"""Operations whose result, or the shape of it, depends on values, besides the value of a scalar."""
waits: list[str] = []
"""The innermost module of the package at each time that a value was needed from the device."""
mode = FakeTensorMode(allow_non_fake_inputs=True)


def remember_wait() -> None:
    """Add the module of the package that is waiting."""
    files = [frame.filename for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
    waits.append(os.path.relpath(files[-1], PACKAGE) if files else "outside")


class CountWaits(TorchDispatchMode):
    """Counts what brings values from the device; a single one is then 1."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("item", "_local_scalar_dense", "is_nonzero"):
            return self.value_of(args[0], function)
        if name == "nonzero":  # as if nothing were zero
            if args[0].device.type == "cuda":
                remember_wait()
            return torch.zeros(args[0].numel(), args[0].ndim, dtype=torch.int64, device=args[0].device)
        on_gpu = any(isinstance(value, Tensor) and value.device.type == "cuda" for value in args)
        if recorded and any(isinstance(value, Tensor) and value.device.type == "cpu" for value in args):
            remember_wait()  # what comes from the CPU cannot be part of a recorded step
        result = function(*args, **(kwargs or {}))
        if on_gpu and (name in VALUES or (isinstance(result, Tensor) and result.device.type == "cpu")):
            remember_wait()
        return result

    def value_of(self, tensor: Tensor, function: Any) -> Any:
        """The value of a real tensor; of a fake one 1."""
        if not isinstance(tensor, FakeTensor):
            with unset_fake_temporarily():
                return function(tensor)
        if tensor.device.type == "cuda":
            remember_wait()
        if function.overloadpacket.__name__ == "is_nonzero" or tensor.dtype == torch.bool:
            return True
        return 1.0 if tensor.is_floating_point() else 1


def as_list(tensor: Tensor) -> Any:
    """In place of `FakeTensor.tolist`: ones."""
    if tensor.device.type == "cuda":
        remember_wait()
    value: Any = 1.0 if tensor.is_floating_point() else 1
    for size in reversed(tensor.shape):
        value = [value] * size
    return value


def to(module: nn.Module, *args: Any, **options: Any) -> nn.Module:
    """In place of `Module.to`, which cannot change fake ones; from the first move to the GPU on, new tensors are."""
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **options)
    if device is not None and device.type == "cuda" and not entered:
        entered.extend((mode.__enter__(), CountWaits().__enter__()))
    if not entered:
        return plain_to(module, *args, **options)
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in moved:
                    new = torch.empty_like(value, device=device, dtype=dtype if value.is_floating_point() else None)
                    if layout is not None and value.ndim == 4:
                        new = new.contiguous(memory_format=layout)
                    moved[id(value)] = nn.Parameter(new, value.requires_grad) if table is part._parameters else new
                table[name] = moved[id(value)]
    return module


recorded: list[int] = []
"""Not empty in a step that a GPU would record."""
plain_to = nn.Module.to
entered: list[Any] = []


@contextmanager
def pretended() -> Iterator[None]:
    """Context in which there is a GPU, for all that asks."""
    waits.clear()
    with ExitStack() as stack:
        for target, name, value in (
            (nn.Module, "to", to),
            (FakeTensor, "tolist", as_list),
            (FakeTensor, "__deepcopy__", lambda tensor, memo: tensor.clone()),  # their memory must not be copied
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *args: True),
            (torch.accelerator, "is_available", lambda: False),
            (
                attention,
                "attend_in_blocks",
                in_one_piece,
            ),  # compiling does not take fake tensors, nor do masks in blocks
            (AttentionMask, "blocks", lambda mask, length: None),
            (torch.cuda, "mem_get_info", lambda device: (2**40, 2**40)),
            (torch.cuda, "memory_reserved", lambda device: 0),
            (torch.cuda, "memory_allocated", lambda device: 0),
            *((module, "read_part", real(module.read_part)) for module in READERS),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        try:
            yield
        finally:
            for context in reversed(entered):
                context.__exit__(None, None, None)
            entered.clear()


def in_one_piece(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """In place of `attend_in_blocks`."""
    return attention.attend(q, k, v, mask.allowed[: q.shape[2], : q.shape[2]])


def real(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes a batch of real numbers on the CPU."""

    def wrapped(*args: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **options)

    return wrapped


def train(module: Any, batch: str, *overrides: str) -> None:
    """Run the `main` of a stage for two steps; it looks at its figures after the second."""
    name = module.__name__.rpartition(".")[2]
    config = load(STAGES[name.replace("_", "-")].config, HOME / f"{name}.yaml", [*overrides, "run.steps=2"])
    quiet = {f"{every}_every": 0 for every in ("log", "validate", "sample", "save")}
    config = type(config)(**{**vars(config), "run": type(config.run)(**{**vars(config.run), **quiet})})
    make = loop.make_accelerator

    def on_cuda(*arguments: Any, **options: Any) -> Any:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        with mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}):
            accelerator = make(*arguments, **options)
        PartialState._shared_state["device"] = AcceleratorState._shared_state["device"] = CUDA
        return accelerator

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(loop, "make_accelerator", on_cuda))
        for writer in ("save_part", "save_prior"):
            if hasattr(module, writer):
                stack.enter_context(mock.patch.object(module, writer, return_value="not saved"))
        if hasattr(module, "save_settings"):
            stack.enter_context(mock.patch.object(module, "save_settings"))
        if hasattr(module, "check_not_needed"):
            stack.enter_context(mock.patch.object(module, "check_not_needed"))
        stack.enter_context(mock.patch.object(module, batch, real(getattr(module, batch))))
        module.main(config)


def tune_decoder() -> None:
    """Run the stage of the image tokenizer on ids that are changed."""
    tune = ("tune.decoder_only=true", "tune.drawn_share=0.5", "tune.replaced_share=0.2")
    with mock.patch.object(DecoderTuning, "make_changes", real(DecoderTuning.make_changes)):
        train(image_tokenizer, "batch_pictures", "data.source=''", f"start_from={HOME}/model", *tune)


def train_prior(*overrides: str) -> None:
    """Run the stage of the prior on embeddings of no content."""
    loaded = Scorer.from_pretrained(HOME / "model", "cuda:0")
    width = loaded.model.embed_dim
    with ExitStack() as stack:
        # What looks at values once, before the first step, is left out.
        for name, value in (
            ("embed_set", lambda scorer, store, folder: torch.rand(len(store), width)),
            ("embed_captions", lambda scorer, store, language: ([""] * len(store), torch.rand(len(store), width))),
            ("scorer_identity", lambda scorer: "a" * 16),
        ):
            stack.enter_context(mock.patch.object(prior, name, value))
        stack.enter_context(mock.patch.object(Scorer, "from_pretrained", return_value=loaded))
        stack.enter_context(mock.patch.object(ARPrior, "fit"))
        waits.clear()
        train(prior, "make_batch", "data.source=''", "run.accumulation=2", *overrides)


def draw_embeddings() -> None:
    """Draw image embeddings from a prior."""
    network = ARPrior(
        components=3, buckets=5, embed_dim=7, text_vocab=300, text_length=5, pad_id=0, n_layer=1, n_head=2, n_embd=8
    ).to(CUDA)
    text_ids = torch.ones(2, 5, dtype=torch.int64, device=CUDA)
    text_embed = torch.rand(2, 7, device=CUDA)
    sampling = PriorSamplingConfig(guidance=2.0)
    with torch.no_grad():
        found = draw_components(network, text_ids, text_embed, sampling, [torch.Generator()] * 2)
    assert found.device == CUDA


def sample() -> None:
    """Draw pictures for a prompt with guidance, and compute likelihoods of them."""
    network, config = load_transformer(HOME / "model", "cuda:0")
    stream = Stream(config)
    sampling = SamplingConfig(temperature=0.9, top_k=5, top_p=0.9, guidance=2.0)
    drawn = generate(network, stream, Prompt([5, 6]), [0, 1, 2], sampling, chunk=2)
    assert drawn.image_ids.shape == (3, *config.grid)
    assert log_likelihood(network, stream, [5, 6], drawn.image_ids).shape == (3, config.grid[0] * config.grid[1])


def embed() -> None:
    """Draw pictures by an image embedding, and compute likelihoods of them given it."""
    told, layout = make_transformer(embed_dim=4)
    told.to("cuda:0")
    sampling = SamplingConfig(temperature=0.9, top_k=5, top_p=0.9, guidance=2.0)
    prompt = Prompt([5, 6], (), [0.5, 1.0, 0.0, -2.0])
    drawn = generate(told, layout, prompt, [0, 1], sampling)
    assert log_likelihood(told, layout, [5, 6], drawn.image_ids, prompt.image_embed).device == CUDA


def graph() -> None:
    """Draw pictures in the steps that a GPU would record."""
    network, config = load_transformer(HOME / "model", "cuda:0")
    decoder, stream = GraphDecoder(network, records=False), Stream(config)
    sampling = SamplingConfig(temperature=0.9, top_k=5, top_p=0.9, guidance=2.0)
    step = StaticBatch._step

    def marked(batch: StaticBatch, span: int) -> None:
        recorded.append(span)
        step(batch, span)
        recorded.pop()

    with mock.patch.object(StaticBatch, "_step", marked):
        assert generate(decoder, stream, Prompt([5, 6]), [0, 1, 2], sampling, chunk=2).image_ids.device == CUDA


def decode() -> None:
    """Encode and decode pictures."""
    tokenizer = ImageTokenizer.from_pretrained(HOME / "model", "cuda:0")
    pixels = torch.rand(2, 3, *tokenizer.config.size) * 2 - 1
    assert tokenizer.decode(tokenizer.encode(pixels)).device == CUDA


def score() -> None:
    """Score pictures."""
    network = Scorer.from_pretrained(HOME / "model", "cuda:0")
    assert network.score(torch.rand(3, 3, 16, 16) * 2 - 1, "a red disc").shape == (3,)


def paint() -> None:
    """Run the steps of a painting."""
    tokenizer = ImageTokenizer.from_pretrained(HOME / "model", "cuda:0")
    scorers = {"own": Scorer.from_pretrained(HOME / "model", "cuda:0")}
    with ExitStack() as stack:
        for name in ("rand", "randn"):
            stack.enter_context(mock.patch.object(torch, name, without_generator(getattr(torch, name))))
        with mock.patch.object(torch, "Generator", generator):
            painter = Painter(tokenizer, scorers, "a red disc", PaintSettings(size=(16, 16), steps=3))
        waits.clear()
        for _ in painter:
            pass


class GpuGenerator:
    """In place of a generator on the GPU, which this build of PyTorch cannot make."""

    device = CUDA

    def manual_seed(self, seed: int) -> "GpuGenerator":
        return self


def generator(device: Any = "cpu", make: Any = torch.Generator) -> Any:
    """In place of `torch.Generator`."""
    return GpuGenerator() if torch.device(device).type == "cuda" else make(device)


def without_generator(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes random numbers, which gets no generator: values of fake tensors do not matter."""
    return lambda *args, generator=None, **options: function(*args, **options)


CHECKS: dict[str, Callable[[], None]] = {
    "transformer": lambda: train(transformer, "make_batch", "run.precision=auto", "run.accumulation=2"),
    "masks": lambda: train(transformer, "make_batch", "model.attention_masks=[row, column]", "recompute=true"),
    "order": lambda: train(transformer, "make_batch", "random_order=[0.5, 0.9]"),
    "tune": tune_decoder,
    "scorer": lambda: train(scorer, "make_batch", "data.source=''", "reconstructed_share=0", "run.accumulation=3"),
    "prior": train_prior,
    "draw-embeddings": draw_embeddings,
    "image-tokenizer": lambda: train(
        image_tokenizer,
        "batch_pictures",
        "data.source=''",
        "model.quantizer=lfq",
        "model.codebook_size=16",
        "model.embed_dim=4",
        "optimizer.muon_learning_rate=0.02",
    ),
    "gan": lambda: train(
        image_tokenizer,
        "batch_pictures",
        "data.source=''",
        "model.quantizer=simvq",
        "gan.weight=0.5",
        "gan.start=0",
        "gan.discriminator_warmup=1",
        "gan.channels=[5, 7]",
        "gan.r1=0.1",
        "gan.lecam=0.1",
        "perceptual=gradient-ssim",
    ),
    "sample": sample,
    "embed": embed,
    "graph": graph,
    "decode": decode,
    "score": score,
    "paint": paint,
}


def planted(kind: str) -> Any:
    """A mistake in the loss of the transformer: a tensor on the CPU, or a look at a value."""
    forward = StreamLoss.forward

    def mistaken(self: StreamLoss, *inputs: Tensor, **options: Tensor) -> tuple[Tensor, Tensor]:
        text, image = forward(self, *inputs, **options)
        return (text + torch.ones(1), image) if kind == "tensor" else (text * float(image.detach()), image)

    return mock.patch.object(StreamLoss, "forward", mistaken)


def main() -> None:
    for name in sys.argv[3:]:
        kind, _, check = name.rpartition(":")
        error = ""
        with pretended(), planted(kind) if kind else ExitStack():
            try:
                CHECKS[check]()
            except Exception as raised:
                frames = traceback.extract_tb(raised.__traceback__)
                place = [
                    f"{frame.filename}:{frame.lineno} {frame.line}" for frame in frames if PACKAGE in frame.filename
                ]
                error = f"{type(raised).__name__}: {str(raised)[:200]} in {place[-1:]}"
        print(json.dumps({"waits": waits, "error": error}), flush=True)
    os._exit(0)  # what stands in for a GPU cannot be taken down in order


if __name__ == "__main__":
    main()
