"""Where the page listens, and who may open it."""

import subprocess
import sys

import pytest

from dalle_mini_impl.app.server import PageSettings, serve
from dalle_mini_impl.util.errors import UserError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_addresses_of_this_machine_need_no_password(host):
    assert PageSettings(host=host).password is None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.com", ""])
def test_other_addresses_need_one(host):
    with pytest.raises(UserError, match="expected --password"):
        PageSettings(host=host)
    assert PageSettings(host=host, password="a long password").host == host


def test_short_passwords_are_refused():
    with pytest.raises(UserError, match="8 characters or more, got 3"):
        PageSettings(password="abc")


def test_without_gradio_the_error_names_the_extra(monkeypatch, tiny_model):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with (
        pytest.raises(UserError, match=r"gradio is not installed; run: pip install gradio .*\.\[app\]"),
        serve(PageSettings(model=str(tiny_model), device="cpu")),
    ):
        pass


def test_the_command_refuses_an_open_page_in_one_line(refused):
    assert refused("app", "--host", "0.0.0.0").startswith("error: expected --password with --host 0.0.0.0")


def test_gradio_writes_no_type_stubs():
    pytest.importorskip("gradio", reason="needs the extra app")
    code = """
import inspect, sys
getfile, opened = inspect.getfile, []
sys.addaudithook(lambda event, values: opened.append(str(values[0])) if event == "open" else None)
from dalle_mini_impl.app.server import _import_gradio
_import_gradio()
assert "gradio.components" in sys.modules
assert inspect.getfile is getfile
print([path for path in opened if path.endswith(".pyi")])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"
