"""Runs the compiled code on random shapes and compares it with references: a program of its own, so that it can be run
under sanitizers.

Arguments: `-march` to compile for, number of tries, seed. Prints how many calls were compared.
"""

import copy
import math
import random
import sys

import torch
from torch import Tensor

from dalle_mini_impl.config.model import BlockConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.masks import KINDS
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.native import library
from dalle_mini_impl.sampling.native.linear import NativeLinear, WeightAndBias
from dalle_mini_impl.sampling.native.next_id import sample_top_k
from dalle_mini_impl.sampling.packing import pack
from helpers import reference
from helpers.models import randomise

SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def check_linear(choose: random.Random) -> None:
    """A linear layer against the product in fp64."""
    rows, outputs, width = choose.choice([0, 1, 2, 5, 12, 13, 31]), choose.randint(0, 99), 16 * choose.randint(1, 6)
    weight, x = noise(outputs, width), noise(rows, width)
    bias = noise(outputs) if choose.random() < 0.5 else None
    rounded = weight.bfloat16().double()
    int8 = choose.random() < 0.5
    if int8:
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        rounded = (weight / scale).round().double() * scale.double()
    y = NativeLinear(library.load(), WeightAndBias(weight, bias), int8)(x)
    expected = x.bfloat16().double() @ rounded.T + (0 if bias is None else bias.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)


def check_sampling(choose: random.Random) -> None:
    """Ids against the reference, for numbers in the middle of an id's interval; in range for logits of any kind."""
    rows, vocab = choose.choice([0, 1, 3, 9, 17]), choose.choice([1, 7, 15, 16, 17, 31, 33, 100, 257])
    top_k, temperature = choose.randint(1, vocab), choose.choice([0.3, 1.0, 2.0])
    logits, expected, uniforms = (noise(rows, vocab) * 6).round() / 4, [], []
    for row in logits.tolist():
        intervals = sorted(reference.probabilities(row, temperature, top_k, 1.0))
        # Not an interval so short that a number in fp32 misses it.
        chosen = choose.choice([number for number, (_, share) in enumerate(intervals) if share > 1e-3])
        uniforms.append(sum(p for _, p in intervals[:chosen]) + intervals[chosen][1] / 2)
        expected.append(reference.next_id(row, uniforms[-1], temperature, top_k, 1.0))
    settings = torch.full((rows,), 1 / temperature), torch.full((rows,), top_k)
    assert sample_top_k(logits, torch.tensor(uniforms), *settings).tolist() == expected
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38])
    share = choose.random()
    replaced = torch.rand(rows, vocab) < share
    wild = torch.where(replaced, special[torch.randint(len(special), (rows, vocab))], logits)
    inverse = torch.tensor([choose.choice([8.5e37, 3.3, 1e-38]) for _ in range(rows)])
    ids = sample_top_k(wild, torch.rand(rows), inverse, torch.full((rows,), top_k))
    assert bool(((ids >= 0) & (ids < vocab)).all())
    possible = wild.nan_to_num(nan=-math.inf, neginf=-math.inf)
    chosen_logits = possible.gather(1, ids[:, None])[:, 0]
    none_possible = possible.amax(1) == -math.inf
    assert bool(((chosen_logits > -math.inf) | (none_possible & (ids == 0))).all())


def check_transformer(choose: random.Random) -> None:
    """A whole decoder, streams at once and continued from a prompt, against the model in full precision."""
    size = 16 * choose.randint(1, 4)
    heads = choose.choice([2, 4])
    layout = StreamConfig(
        text_length=choose.randint(1, 9),
        text_vocab=choose.randint(20, 90),
        grid=(choose.randint(1, 5), choose.randint(2, 7)),
        image_vocab=choose.randint(3, 70),
        bos_id=1,
    )
    foreign = choose.random() < 0.7
    block = BlockConfig(
        norm=choose.choice(["rms", "layer"]),
        mlp=choose.choice(["swiglu", "geglu", "gelu", "gelu-tanh"]),
        bias=choose.random() < 0.5,
        qk_norm=choose.random() < 0.5,
        hidden=choose.choice([0, 37, 64]),
        rotate_values=foreign and choose.random() < 0.5,
        sandwich=foreign and choose.random() < 0.5,
        token_shift=foreign and choose.random() < 0.5,
        reversible=foreign and choose.random() < 0.3,
    )
    config = TransformerConfig(
        n_layer=choose.randint(1, 3),
        n_head=heads,
        n_embd=32 * choose.randint(1, 3),
        head_dim=size,
        attention_masks=tuple(choose.choice(KINDS) for _ in range(choose.randint(1, 2))),
        mask_kernel=3,
        block=block,
    )
    exact, stream = randomise(build_transformer(config, layout), choose.randrange(99)), Stream(layout)
    native = pack(copy.deepcopy(exact), choose.choice(["bf16", "int8"]), stream.image_range)
    prompts, count, begin = choose.randint(1, 3), choose.randint(1, 9), choose.randint(1, stream.length - 1)
    ids = torch.randint(stream.vocab_size, (prompts, stream.length)).repeat_interleave(count, 0)
    ids[:, begin:] = torch.randint(stream.vocab_size, (prompts * count, stream.length - begin))
    with torch.inference_mode():
        expected = exact.logits(exact(ids), stream.image_range).float()
        cache = native.new_cache(prompts, begin)
        native(ids[::count, :begin], cache)
        branch = cache.branch(torch.arange(prompts).repeat_interleave(count), stream.length)
        parts = [native(ids[:, at : at + 1], branch) for at in range(begin, stream.length)]
        for hidden, exactly in (
            (native(ids), expected),
            (torch.cat(parts, 1), expected[:, begin:]),
        ):
            logits = native.logits(hidden, stream.image_range)
            error = (logits - exactly).square().mean().sqrt() / exactly.std()
            assert error < 0.1, (error, config, layout)


def main(march: str, tries: int, seed: int) -> None:
    library.FLAGS = (*(flag for flag in library.FLAGS if "-march" not in flag and flag != "-O2"), march, *SANITIZERS)
    library.COMPILER_TIMEOUT = 3600  # sanitizers make it slow, and other tests may run at the same time
    assert library.load() is not None
    choose = random.Random(seed)
    torch.manual_seed(seed)
    checks = (check_linear, check_sampling, check_transformer)
    for number in range(tries):
        torch.set_num_threads(1 + number % 8)
        for check in checks:
            check(choose)
    print(tries * len(checks))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
