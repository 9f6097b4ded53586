"""Reads the transformer's state and writes it again elsewhere: `pass_on.py FOLDER ARGUMENT…`, started by accelerate."""

import sys
from dataclasses import replace
from unittest import mock

from dalle_mini_impl.train import transformer
from dalle_mini_impl.train.shared.state import load_state, save_state
from helpers.training import run_stage


def passing_on(folder):
    """While this lasts, a resumed run does no step; it writes the state that it was given into a folder."""

    def load_and_save(accelerator, run, *trained, **own):
        step = load_state(accelerator, run, *trained, **own)
        save_state(accelerator, replace(run, state_dir=str(folder)), step - 1, *trained, **own)
        return run.steps

    return mock.patch.object(transformer, "load_state", load_and_save)


if __name__ == "__main__":
    with passing_on(sys.argv[1]):
        run_stage("transformer", sys.argv[2:])
