"""A stage in each of several processes, watched: `ranks.py FOLDER STOP STAGE ARGUMENT…`, started by accelerate.

After each step every process writes its own copy of the image tokenizer's codebook into FOLDER; after step
STOP (-1: never) all of them end without further ado, as if killed.
"""

import os
import sys
from pathlib import Path

import torch
from train_fixtures import STAGES

from dalle_mini_impl.train.average import Average


def main() -> None:
    folder, stop, stage, *arguments = sys.argv[1:]
    update = Average.update

    def watched(average, model, step):
        update(average, model, step)
        torch.save(model.quantizer.inner.codebook.clone(), Path(folder) / f"{os.environ['RANK']}-{step}.pt")
        if step == int(stop):
            sys.stdout.flush()
            os._exit(0)

    Average.update = watched
    STAGES[stage](arguments)


if __name__ == "__main__":
    main()
