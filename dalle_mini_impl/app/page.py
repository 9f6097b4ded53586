"""The page: all tabs, its looks, and what happens when a visitor leaves."""

from typing import Any

from dalle_mini_impl.app.limits import MAX_WAITING, UPLOADS_KEPT_SECONDS
from dalle_mini_impl.app.shared import Shared
from dalle_mini_impl.app.tabs import find_tabs

CLEANED_EVERY = 300
"""Seconds between removals of old files."""


def build_page(shared: Shared, title: str) -> Any:
    """Lay out the page.

    Args:
        shared: what all tabs have in common.
        title: of the page.

    Returns:
        `gr.Blocks`, with its queue.
    """
    import gradio as gr

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(CLEANED_EVERY, UPLOADS_KEPT_SECONDS)) as page:
        gr.HTML(f"<h1>{title}</h1>", elem_id="title")
        shared.sent = gr.State()
        with gr.Tabs() as shared.tabs:
            for name, tab in find_tabs():
                with gr.Tab(tab.TITLE, id=name):
                    tab.build(shared)

        def leave(request: gr.Request) -> None:
            """Stop the work of a visitor who closes the page, so that the next one is served."""
            shared.work.stop(str(request.session_hash))

        page.unload(leave)
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)


def theme() -> Any:
    """Colours and fonts; the fonts are the machine's own, so that none is fetched."""
    import gradio as gr

    return gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
