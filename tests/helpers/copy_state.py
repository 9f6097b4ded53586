"""Loads the transformer's state and saves it to another folder, in processes launched by accelerate.

copy_state.py FOLDER ARGUMENT…
"""

import sys
from dataclasses import replace
from unittest import mock

from dalle_mini_impl.train import transformer
from dalle_mini_impl.train.shared.state import load_state, save_state
from helpers.training import run_stage


def copying_state(folder):
    """Within this context a resumed run makes no steps; it saves the state that it loaded to a folder."""

    def load_and_save(accelerator, run, *trained, **process_tensors):
        step = load_state(accelerator, run, *trained, **process_tensors)
        save_state(accelerator, replace(run, state_dir=str(folder)), step - 1, *trained, **process_tensors)
        return run.steps

    return mock.patch.object(transformer, "load_state", load_and_save)


if __name__ == "__main__":
    with copying_state(sys.argv[1]):
        run_stage("transformer", sys.argv[2:])
