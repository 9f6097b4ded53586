"""Files of prompts."""

import json
import os

import pytest

from dalle_mini_impl.pipeline.prompts_file import MAX_LINE, read_prompts
from dalle_mini_impl.util.errors import UserError


def lines_of(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_prompts(path))


def test_each_line_of_a_text_file_is_a_prompt(tmp_path):
    expected = [{"prompt": text} for text in ("ein Herz\u2028rot", "zwei\x85drei", "心形")]
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        content = "ein Herz\u2028rot\rzwei\x85drei\r\n\n   \n  心形  ".encode(encoding)
        assert lines_of(tmp_path / "prompts.txt", content) == expected


def test_lines_of_json_have_settings_of_their_own(tmp_path):
    values = [
        {"prompt": "a cat", "seed": 3, "guidance": 2, "keep": 1, "tile": False},
        {"prompt": "a cat", "seeds": [7, 2**62]},
        {"prompt": "a \ud800 cat", "negative": "a dog", "top_p": 0.5, "rank": "none", "prune": True},
    ]
    assert lines_of(tmp_path / "prompts.jsonl", "\n\n".join(map(json.dumps, values))) == [
        {"prompt": "a cat", "seed": 3, "guidance": 2.0, "keep": 1, "tile": False, "seeds": None},
        {"prompt": "a cat", "seeds": [7, 2**62], "candidates": 2, "keep": 2},
        {"prompt": "a ? cat", "negative": "a dog", "top_p": 0.5, "rank": "none", "prune": True},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a red heart", "line 2: Expecting value"),
        ('["a cat"]', r"line 2: expected an object such as \{"),
        ('{"seed": 3}', "line 2: a prompt: 'prompt' is missing"),
        ('{"prompt": "a cat", "sed": 3}', "line 2: a prompt: unknown key 'sed'; did you mean 'seed'"),
        ('{"prompt": "a cat", "seed": "three"}', "line 2: a prompt: seed: expected int, got 'three'"),
        ('{"prompt": 3}', "line 2: a prompt: prompt: expected str, got 3"),
        ("[" * 100_000, "line 2: JSON nested too deeply"),
        ('{"prompt": "' + "a" * MAX_LINE + '"}', "line 1: a line of more than 1,048,576 characters"),
        ('{"prompt": "a\0"}', "line 1: a NUL character"),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, message):
    with pytest.raises(UserError, match=rf"expected a UTF-8 file with one JSON object per line, got .*\({message}"):
        lines_of(tmp_path / "prompts.jsonl", '{"prompt": "a cat"}\n' + line)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    for name in ("pipe.txt", "latin.txt", "absent.txt", "."):
        with pytest.raises(UserError, match=r"expected a UTF-8 file with one text per line, got .*; name another file"):
            list(read_prompts(tmp_path / name))


def test_lines_are_read_as_they_are_needed(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cat"}\nwrong\n')
    prompts = read_prompts(path)
    assert next(prompts) == {"prompt": "a cat"}
    with pytest.raises(UserError, match="line 2"):
        next(prompts)
