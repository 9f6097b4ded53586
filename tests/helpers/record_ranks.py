"""Runs a stage and records it: `record_ranks.py FOLDER STOP STAGE ARGUMENT…`, in processes launched by accelerate.

After each step every process writes into FOLDER its copy of the image tokenizer's codebook, or, for other stages, the
number of elements it holds of the weights, gradients, moments and EMA. After step STOP (-1: never) all processes exit
at once, as if killed.
"""

import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from dalle_mini_impl.train.shared.ema import Ema
from helpers.training import run_stage


def local_elements(tensors):
    """Number of elements of the tensors, or of their shards, in this process."""
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel() for tensor in tensors)


def main() -> None:
    folder, stop, stage, *arguments = sys.argv[1:]
    update = Ema.update
    held: dict[str, int] = {}

    def record_optimizer(optimizer, *_):
        moments = (m for moments in optimizer.state.values() for m in moments.values() if m.ndim)
        held["moments"] = local_elements(moments)
        held["gradients"] = local_elements(p.grad for group in optimizer.param_groups for p in group["params"])

    def recording_update(ema, model, step):
        update(ema, model, step)
        held["weights"] = local_elements(model.parameters())
        held["ema"] = local_elements(ema.state.values())
        record = model.quantizer.inner.codebook.clone() if stage == "image_tokenizer" else held
        torch.save(record, Path(folder) / f"{os.environ['RANK']}-{step}.pt")
        if step == int(stop):
            sys.stdout.flush()
            os._exit(0)

    register_optimizer_step_post_hook(record_optimizer)
    Ema.update = recording_update
    run_stage(stage, arguments)


if __name__ == "__main__":
    main()
