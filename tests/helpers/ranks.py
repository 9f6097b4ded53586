"""A stage in each of several processes, watched: `ranks.py FOLDER STOP STAGE ARGUMENT…`, started by accelerate.

After each step every process writes into FOLDER its own copy of the image tokenizer's codebook, or how many numbers it
holds of the transformer and of what belongs to it; after step STOP (-1: never) all of them end without further ado, as
if killed.
"""

import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from dalle_mini_impl.train.shared.ema import Ema
from helpers.training import run_stage


def numbers(tensors):
    """How many of them are in this process."""
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel() for tensor in tensors)


def main() -> None:
    folder, stop, stage, *arguments = sys.argv[1:]
    update, held = Ema.update, {}

    def count(optimizer, *_):
        held["moments"] = numbers(m for moments in optimizer.state.values() for m in moments.values() if m.ndim)
        held["gradients"] = numbers(p.grad for group in optimizer.param_groups for p in group["params"])

    def watched(average, model, step):
        update(average, model, step)
        held["weights"], held["average"] = numbers(model.parameters()), numbers(average.state.values())
        seen = model.quantizer.inner.codebook.clone() if stage == "image_tokenizer" else held
        torch.save(seen, Path(folder) / f"{os.environ['RANK']}-{step}.pt")
        if step == int(stop):
            sys.stdout.flush()
            os._exit(0)

    register_optimizer_step_post_hook(count)
    Ema.update = watched
    run_stage(stage, arguments)


if __name__ == "__main__":
    main()
