"""Starts the page: where it listens, who may open it, and what is left when it ends."""

import hmac
import importlib
import inspect
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle_mini_impl.app.limits import MAX_PIXELS, MAX_SESSIONS, MAX_UPLOAD_BYTES
from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.loopback import is_loopback

LEAST_PASSWORD = 8
"""Characters of a password, so that it cannot be guessed."""


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """Where the page is served, and with what.

    Raises:
        UserError: it would be open to other machines without a password, or the password is short.
    """

    model: str = "emoji"
    """As for `DalleMini.from_pretrained`."""
    device: str = "auto"
    precision: str = "auto"
    scorer: str | None = None
    """Ranks, paints, searches and classifies instead of the model's own."""
    pictures: Path | None = None
    """Folder of pictures with an index, which visitors may search."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int | None = None
    """None for the first free one from 7860 on."""
    password: str | None = None
    """Asked of visitors, with any name; None asks for none."""

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.password is None:
            raise UserError(
                f"expected --password with --host {self.host}, which other machines can reach, got none; "
                f"add one, or leave out --host"
            )
        if self.password is not None and len(self.password) < LEAST_PASSWORD:
            raise UserError(
                f"expected a password of {LEAST_PASSWORD} characters or more, got {len(self.password)}; "
                f"choose a longer one"
            )


@contextmanager
def serve(settings: PageSettings) -> Iterator[str]:
    """Serve the page until the block ends.

    Yields:
        Its address.

    Raises:
        UserError: gradio is not installed, the model cannot be loaded, the folder of pictures has no index, or the port
            is taken.
    """
    with ThreadPoolExecutor(1) as pool:  # gradio is imported while the model is loaded
        imported = pool.submit(_import_gradio)
        shared_arguments = _load(settings)
        imported.result()
    with tempfile.TemporaryDirectory(prefix="dalle-app-") as folder, _private_folder(folder):
        page = _launch(settings, shared_arguments, Path(folder))
        try:
            yield page.local_url
        finally:
            page.close(verbose=False)


def _import_gradio() -> None:
    try:
        with _no_type_stubs():
            importlib.import_module("gradio")
    except ImportError as error:
        raise need_extra("gradio", "app") from error


@contextmanager
def _no_type_stubs() -> Iterator[None]:
    """Keep gradio from writing `.pyi` files into its own folder while it is imported, which takes half of that time.

    It leaves out classes whose file `inspect.getfile` does not find.
    """
    getfile = inspect.getfile

    def find(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("no type stubs are wanted")
        return getfile(thing)

    inspect.getfile = find  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = getfile


def _load(settings: PageSettings) -> dict[str, Any]:
    """The model, its styles and the folder of pictures."""
    from dalle_mini_impl.checkpoint.find import find_checkpoint
    from dalle_mini_impl.checkpoint.settings import load_settings
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.scorer.scorer import Scorer
    from dalle_mini_impl.search.index import ImageIndex

    dalle = DalleMini.from_pretrained(settings.model, settings.device, settings.precision)
    if settings.scorer is not None:
        dalle.scorer = Scorer.from_pretrained(settings.scorer, str(dalle.transformer.device))
    if settings.pictures is not None:
        ImageIndex.open(settings.pictures, dalle.scorer)
    styles = load_settings(find_checkpoint(settings.model)).about.styles
    return {"dalle": dalle, "styles": styles, "pictures": settings.pictures}


@contextmanager
def _private_folder(folder: str) -> Iterator[None]:
    """Have gradio keep files in a folder and report nothing, and Pillow refuse larger pictures than the page takes."""
    from PIL import Image

    settings = {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_ANALYTICS_ENABLED": "False",
        # Statistics of all events, which gradio would compute again after each.
        "GRADIO_ANALYTICS_MAX_EVENTS": "100",
        "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    }
    before = {name: os.environ.get(name) for name in settings}
    pixels_before = Image.MAX_IMAGE_PIXELS
    os.environ.update(settings)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = pixels_before
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _launch(settings: PageSettings, shared_arguments: dict[str, Any], folder: Path) -> Any:
    from starlette.middleware import Middleware

    from dalle_mini_impl.app.assets import FOLDER
    from dalle_mini_impl.app.guard import PageGuard
    from dalle_mini_impl.app.page import build_page, theme
    from dalle_mini_impl.app.shared import Shared

    async def knows_password(name: str, password: str) -> bool:
        return hmac.compare_digest(password.encode(), (settings.password or "").encode())

    page = build_page(Shared(folder=folder, **shared_arguments), f"dalle: {Path(settings.model).name}")
    guard = Middleware(PageGuard, folder=folder, own_machine_only=settings.password is None)
    try:
        page.launch(
            server_name=settings.host,
            server_port=settings.port,
            auth=knows_password if settings.password else None,
            auth_message="Type any name, and the password.",
            max_file_size=MAX_UPLOAD_BYTES,
            state_session_capacity=MAX_SESSIONS,
            app_kwargs={"middleware": [guard]},
            theme=theme(),
            css_paths=[FOLDER / "page.css"],
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            inbrowser=False,
            share=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
        )
    except OSError as error:
        raise UserError(
            f"expected a free port at {settings.host}, got {settings.port or 'none from 7860 on'} ({error}); choose "
            f"another with --port"
        ) from error
    return page
