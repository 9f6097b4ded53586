import pytest

from dalle_mini_impl.serve.keys import VARIABLE, Keys, read_keys
from dalle_mini_impl.util.errors import UserError

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"


@pytest.fixture(autouse=True)
def _no_keys_around(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_keys_come_from_a_file_and_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys.txt"
    file.write_text(f"# of the lab\n{FIRST}  # until May\n\n")
    monkeypatch.setenv(VARIABLE, f" {SECOND} ,")
    keys = read_keys(file)
    for key in (FIRST, SECOND):
        assert keys.accept(f"Bearer {key}")
        assert keys.accept(f"bearer  {key} ")
    for wrong in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {FIRST}",
        FIRST,
        f"Bearer {FIRST}x",
        f"Bearer {FIRST[:-1]}",
        "Bearer é",
    ):
        assert not keys.accept(wrong), wrong
    assert keys
    assert not read_keys(None).accept(f"Bearer {FIRST}")


def test_without_keys_everybody_is_let_in():
    keys = read_keys(None)
    assert not keys
    assert keys.accept("")
    assert Keys().accept("Bearer anything")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least one key in"),
        (b"# nothing\n", "at least one key in"),
        (b"short\n", "at least 16 letters and digits, got another in place 1"),
        (b"a key with spaces 0123\n", "at least 16 letters and digits"),
        (b"\xff\xfe\xff", "one key per line"),
        (None, "one key per line"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "keys.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_keys(file)
    assert "\n" not in str(caught.value)
    assert "short" not in str(caught.value)  # a key is no text for logs


def test_a_folder_is_no_file_of_keys(tmp_path):
    with pytest.raises(UserError, match="got a folder"):
        read_keys(tmp_path)
