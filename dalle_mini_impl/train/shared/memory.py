"""What a stage's config asks for is compared with the free memory before anything of that size is allocated.

Needs are lower bounds: they refuse what cannot work, and are no plan of how large a model or a batch may be
(`dalle plan` is one).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from torch import nn

from dalle_mini_impl.checkpoint.check_weights import limited_numbers
from dalle_mini_impl.config.model import TransformerConfig
from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.train.shared.fsdp import shard_count
from dalle_mini_impl.util.devices import free_memory
from dalle_mini_impl.util.memory import available_memory, check_memory

FP32, BF16 = 4, 2
"""Bytes of a number."""
COPIES = 4
"""Numbers that training holds for each weight besides it: gradient, two moments, EMA."""
PIXEL_BYTES = 48
"""Bytes that a pixel takes in a pass: as stored, augmented, reconstructed, and its gradient."""
MASK_BYTES = 40
"""Bytes for each pair of positions while an attention mask is made."""


@contextmanager
def bounded_networks() -> Iterator[None]:
    """Context in which a stage builds its networks; a tensor that does not fit into the memory is not allocated.

    Raises:
        UserError: one does not fit.
    """
    limit = available_memory() // FP32
    with limited_numbers(
        limit,
        f"expected a network of at most {limit:,} numbers, which the free memory has room for, got a larger one; "
        f"make the sizes in model smaller",
    ):
        yield


def rows_in_pass(accelerator: Accelerator, run: RunConfig) -> int:
    """Pictures in each forward and backward pass."""
    return run.batch_size // (accelerator.num_processes * run.accumulation)


def check_training_memory(accelerator: Accelerator, module: nn.Module, pass_bytes: int) -> None:
    """Refuse training that cannot fit into the memory of its device.

    Args:
        accelerator: the processes of the run.
        module: everything that is trained; its weights are allocated already.
        pass_bytes: what a pass takes besides.

    Raises:
        UserError: it cannot.
    """
    weights = sum(parameter.numel() for parameter in module.parameters())
    check_memory(
        COPIES * FP32 * weights / shard_count(accelerator.num_processes) + pass_bytes,
        f"the training of {weights:,} weights",
        "make the model smaller, lower run.batch_size or raise run.accumulation",
        free_memory(accelerator.device),
    )


def check_mask_memory(config: TransformerConfig, stream: Stream) -> None:
    """Refuse attention masks of more positions than fit into the memory.

    Raises:
        UserError: they do not.
    """
    makes_masks = {*config.attention_masks, config.last_attention_mask or "full"} != {"full"}
    check_memory(
        stream.positions**2 * (MASK_BYTES if makes_masks else 1),
        f"attention among {stream.positions:,} positions",
        "lower text_length, or use an image tokenizer with fewer cells",
    )


def transformer_pass_bytes(config: TransformerConfig, stream: Stream, rows: int, recompute: bool) -> int:
    """Bytes of a pass over some rows: the inputs of the blocks, the logits, and the attention scores if those are kept.

    Args:
        config: of the transformer.
        stream: its layout.
        rows: pictures in the pass.
        recompute: whether activations are recomputed; then scores are not kept.
    """
    inputs = config.n_layer * stream.positions * config.n_embd
    logits = stream.config.text_length * stream.image_offset + stream.image_length * stream.config.image_vocab
    scores = 0 if recompute else config.n_layer * config.n_head * stream.positions**2
    return rows * (BF16 * (inputs + scores) + 2 * FP32 * logits)
