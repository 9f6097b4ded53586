"""Unusual Unicode in prompts, labels and captions: a right result or one line, by the API and the command line."""

import json
import random
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import read_metadata

ALPHABETS = {
    "surrogates": "a \ud800\udbff\udc00\udfff\udce5",
    "control characters": "a\0\x01\x07\x08\r\n\t\x0b\x0c\x1b\x7f\x85\x9b\u2028\u2029",
    "terminal escapes": ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r\x1b[K", "cat"],
    "right to left": "قلب أحمر\u202e\u202d\u2066\u2069\u200f ab",
    "combining": "e\u0301\u0302\u0489\u20dd\u0345\u200d\ufe0f🦄👩",
    "any": [chr(code) for code in (*range(1, 0x3000, 97), 0xFFFD, 0xFFFE, 0xFFFF, 0x10FFFF, 0x1F984)],
    "syntax": ":|\\%-+,.0123456789{}[]'\"$`*?/~",
}
LENGTHS = (1, 2, 17, 300)


def texts(count):
    """Texts of each alphabet in turn, some of 30,000 characters; the same ones every time."""
    source = random.Random(0)
    names = list(ALPHABETS)
    for number in range(count):
        length = 30_000 if number % 50 == 7 else source.choice(LENGTHS)
        yield "".join(source.choice(ALPHABETS[names[number % len(names)]]) for _ in range(length))


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_any_text_can_be_a_prompt_a_label_and_a_caption_of_the_api(tiny_dalle, tmp_path, tries, report):
    count = tries(300, 21)
    picture = tiny_dalle.generate("a cat", candidates=1)[0].image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # long texts are cut with a warning
        for text in texts(count):
            result = tiny_dalle.generate(text, candidates=1, negative=text[:50])
            (path,) = result.save(tmp_path)
            assert read_metadata(path)["pictures"] == result.metadata()["pictures"]
            assert tiny_dalle.scorer.classify([picture], [text, "a cat"]).isfinite().all()
            assert len(tiny_dalle.caption(picture, [text, "a cat"])) == len({text, "a cat"})
    report("300 random Unicode prompts, labels, captions", f"API {count} of {count} right")


def test_any_text_can_be_an_argument_of_the_command_line(tiny_model, tries, report):
    count = tries(300, 7)
    runner = CliRunner()
    right = 0
    for number, text in enumerate(texts(count)):
        text = text.replace("\0", "") or "a"  # a command line cannot hold it
        fixed = ["--model", str(tiny_model), "--device", "cpu", "--json", "out.json"]
        commands = {
            "sample": ["sample", "-n", "1", *fixed, "--", text],
            "write": ["write", "-n", "2", *fixed, "--", text],
        }
        for name, command in commands.items():
            result = runner.invoke(dalle, command)
            shown = result.stdout + result.stderr
            assert not {"\x1b", "\x9b", "\x07"} & set(shown), (number, name)
            if result.exception is None:
                json.loads(Path("out.json").read_text(encoding="utf-8"))
                right += 1
            else:
                assert isinstance(result.exception, (UserError, SystemExit)), (number, name, result.exception)
                assert "\n" not in str(result.exception), (number, name)
    report(
        "300 random Unicode prompts, labels, captions", f"command line {right} of {2 * count} right, others one line"
    )
