"""Compiling, and the folder that compiled code is kept in."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile

import pytest

from dalle_mini_impl.sampling.native import library

pytestmark = pytest.mark.skipif(library.load() is None, reason="there is no C compiler with OpenMP")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder that compiled code is kept in; absent, and nothing is loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "FLAGS", [*library.FLAGS, "-O0"])  # compiles faster
    library.load.cache_clear()
    yield tmp_path / "cache" / "dalle-mini-impl"
    library.load.cache_clear()


@pytest.fixture
def compilations(monkeypatch):
    """The commands that were run."""
    commands, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **rest: commands.append(command) or run(command, **rest))
    return commands


def load_anew():
    """Load as another process would; whether that succeeds."""
    library.load.cache_clear()
    loaded = library.load()
    return loaded is not None and loaded.lanes() in (8, 16)


def test_it_is_compiled_once_into_a_folder_of_this_user_alone(cache, compilations):
    previous = os.umask(0o002)
    try:
        assert load_anew()
    finally:
        os.umask(previous)
    (path,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_anew()
    assert len(compilations) == 1


def test_other_sources_or_commands_get_files_of_their_own(monkeypatch, tmp_path):
    before = library._key(["cc"])
    assert before == library._key(["cc"])
    assert before != library._key(["gcc"])
    other = tmp_path / "step.c"
    other.write_text("int lanes(void) { return 16; }")
    monkeypatch.setattr(library, "SOURCES", (other, *library.SOURCES[1:]))
    assert before != library._key(["cc"])


# --- damage


def cut_off(path):
    os.truncate(path, 4096)


def empty(path):
    os.truncate(path, 0)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def append(path):
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [cut_off, empty, flip_a_bit, append])
def test_a_damaged_file_is_compiled_anew_once(cache, compilations, damage):
    assert load_anew()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.unlink()  # it is in use
    path.write_bytes(whole)
    path.chmod(0o600)
    damage(path)
    assert load_anew()
    assert load_anew()
    assert len(compilations) == 2
    assert path.read_bytes() == whole


# --- files and folders of others


def writable_folder(cache):
    cache.chmod(0o777)


def group_writable_folder(cache):
    cache.chmod(0o770)


def linked_folder(cache):
    cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to("elsewhere")


def writable_file(cache):
    next(cache.iterdir()).chmod(0o666)


def linked_file(cache):
    path = next(cache.iterdir())
    path.rename(cache.parent / path.name)
    path.symlink_to(cache.parent / path.name)


def pipe_instead_of_a_file(cache):
    path = next(cache.iterdir())
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    "change",
    [writable_folder, group_writable_folder, linked_folder, writable_file, linked_file, pipe_instead_of_a_file],
)
@pytest.mark.filterwarnings("ignore:expected .* to be a folder of yours")
def test_nothing_that_others_could_have_written_is_loaded(cache, compilations, change):
    assert load_anew()
    change(cache)
    assert load_anew()
    assert len(compilations) == 2


def test_nothing_of_another_user_is_loaded(cache, compilations, monkeypatch):
    assert load_anew()
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.warns(UserWarning, match="to be a folder of yours that nobody else can write to, got another"):
        assert load_anew()
    assert len(compilations) == 2


@pytest.mark.parametrize(
    "environment", [{"HOME": None}, {"HOME": ""}, {"HOME": "home"}, {"HOME": None, "XDG_CACHE_HOME": "cache"}]
)
def test_nothing_is_kept_in_or_loaded_from_the_current_folder(environment, monkeypatch, tmp_path):
    import pwd

    def no_entry(user):
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    for name, value in environment.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    folder = library.cache_folder()
    assert folder is None or folder.is_absolute()
    monkeypatch.setattr(library, "cache_folder", lambda: None if folder is None else tmp_path / "away" / "mini")
    assert load_anew()
    assert not list(tmp_path.glob("**/~")) + list(tmp_path.glob("cache")) + list(tmp_path.glob("home"))


# --- where nothing can be written or run


def test_a_cache_folder_that_cannot_be_made_is_not_needed(cache, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_anew()


def test_what_is_kept_is_loaded_without_a_place_for_temporary_files(cache, monkeypatch):
    def no_place(*args, **options):
        raise FileNotFoundError("no usable temporary directory found")

    assert load_anew()
    monkeypatch.setattr(tempfile, "TemporaryDirectory", no_place)
    monkeypatch.setattr(subprocess, "run", no_place)
    assert load_anew()
    shutil.rmtree(cache)
    assert not load_anew()


def test_without_a_place_for_temporary_files_it_is_compiled_in_the_cache_folder(cache, compilations, monkeypatch):
    temporary = tempfile.TemporaryDirectory

    def only_in_a_folder(dir=None):
        if dir is None:
            raise FileNotFoundError("no usable temporary directory found")
        return temporary(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", only_in_a_folder)
    assert load_anew()
    assert load_anew()
    assert len(compilations) == 1
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "'unfinished"])
def test_without_a_compiler_nothing_is_loaded(cache, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    assert not load_anew()
    assert not list(cache.parent.rglob("*.so"))


def test_processes_that_compile_at_once_leave_one_whole_file(cache, compilations, monkeypatch):
    code = "from dalle_mini_impl.sampling.native.library import load; assert load().lanes()"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(library, "FLAGS", library.FLAGS[:-1])
    assert load_anew()
    assert not compilations
