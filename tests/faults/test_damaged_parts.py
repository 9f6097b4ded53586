"""Damaged parts: wherever a file is cut off or a bit of it is flipped, loading it ends with one line that names it."""

import random
import shutil

import pytest
from helpers.priors import add_every_part, skip_without

from dalle_mini_impl.checkpoint.parts import PARTS, read_part
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE, read_text_tokenizer
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.util.errors import UserError

ROW = "parts with one bit flipped or cut off"


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the checkpoint that a test may change, with every part there is."""
    return add_every_part(shutil.copytree(tiny_model, tmp_path / "model"))


def regions(content):
    """First and last byte of the length, of the header, of its padding and of the weights of a safetensors file."""
    header_end = 8 + int.from_bytes(content[:8], "little")
    text_end = len(content[:header_end].rstrip(b" "))
    return {
        "length": range(8),
        "header": range(8, text_end),
        "padding": range(text_end, header_end),
        "weights": range(header_end, len(content)),
    }


def is_named(folder, part):
    """Whether reading a part ends with one line that names its file and says what to do."""
    with pytest.raises(UserError) as caught:
        read_part(folder, part)
    message = str(caught.value)
    assert message.startswith(f"{folder / part}.safetensors is damaged or was not written by this package (")
    assert message.endswith("; copy or train it again")
    return "\n" not in message and len(message) < 700


@pytest.mark.parametrize("part", PARTS)
def test_every_flipped_bit_is_noticed(folder, part, tries, report):
    skip_without(folder, part)
    path = folder / f"{part}.safetensors"
    content = path.read_bytes()
    choose = random.Random(part)
    count = 0
    for name, places in regions(content).items():
        chosen = list(places) if len(places) < 9 else choose.sample(places, tries(400, 25))
        for place in chosen:
            damaged = bytearray(content)
            damaged[place] ^= 1 << choose.randrange(8)
            path.write_bytes(damaged)
            assert is_named(folder, part), (name, place)
            count += 1
    report(ROW, f"{part}: {count} of {count} bits named")


@pytest.mark.parametrize("part", PARTS)
def test_every_cut_off_file_is_noticed(folder, part, tries, report):
    skip_without(folder, part)
    path = folder / f"{part}.safetensors"
    content = path.read_bytes()
    lengths = {0, 7, 8, 9, len(content) - 1, *random.Random(part).sample(range(len(content)), tries(300, 20))}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        assert is_named(folder, part), length
    path.write_bytes(content + b"\0")
    assert is_named(folder, part)
    report(ROW, f"{part}: {len(lengths)} of {len(lengths)} lengths named")


def test_a_changed_text_tokenizer_is_noticed(folder, tries, report):
    path = folder / TEXT_TOKENIZER_FILE
    content = path.read_bytes()
    choose = random.Random(0)
    places = choose.sample(range(len(content)), tries(400, 25))
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"text_tokenizer") as caught:
            load_transformer(folder)
        assert "\n" not in str(caught.value)
    for length in choose.sample(range(len(content)), 9):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"text_tokenizer"):
            load_transformer(folder)
    path.write_bytes(content)
    assert read_text_tokenizer(folder).identity
    report(ROW, f"text tokenizer: {len(places) + 9} of {len(places) + 9} named")
