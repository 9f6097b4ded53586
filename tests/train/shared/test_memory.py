"""Sizes of configs are refused before anything of that size is allocated."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.train.shared import memory
from dalle_mini_impl.util.errors import UserError

CONFIG = TransformerConfig(n_layer=3, n_head=2, n_embd=24)
STREAM = StreamConfig(text_length=7, text_vocab=367, grid=(3, 5), image_vocab=61)
PROCESS = SimpleNamespace(num_processes=1, device=torch.device("cpu"))


def test_a_network_larger_than_the_memory_is_refused_before_it_is_allocated():
    message = r"expected a network of at most .* make the sizes in model smaller"
    with pytest.raises(UserError, match=message), memory.bounded_networks():
        nn.Linear(10**9, 10**9)
    with memory.bounded_networks():
        assert nn.Linear(5, 7).weight.shape == (7, 5)


def test_the_copies_of_the_weights_and_the_batch_count(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 4 * 4 * 35 + 1000)
    module = nn.Linear(5, 7, bias=False)
    memory.check_training_memory(PROCESS, module, 1000)
    with pytest.raises(UserError, match=r"expected the training of 35 weights to fit into .* run\.batch_size"):
        memory.check_training_memory(PROCESS, module, 1001)


def test_long_streams_are_refused():
    long = Stream(replace(STREAM, text_length=10**7))
    for config in (CONFIG, replace(CONFIG, attention_masks=("row",))):
        with pytest.raises(UserError, match="expected attention among 10,000,016 positions to fit into"):
            memory.check_mask_memory(config, long)
        memory.check_mask_memory(config, Stream(STREAM))


def test_a_pass_holds_inputs_scores_and_logits():
    rows, length = 11, 1 + 7 + 15
    inputs, scores, logits = 3 * length * 24, 3 * 2 * length**2, 7 * (367 + 7) + 15 * 61
    whole = memory.transformer_pass_bytes(CONFIG, Stream(STREAM), rows, recompute=False)
    assert whole == rows * (2 * (inputs + scores) + 8 * logits)
    assert memory.transformer_pass_bytes(CONFIG, Stream(STREAM), rows, recompute=True) == whole - rows * 2 * scores
