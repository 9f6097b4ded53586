"""The page that `dalle app` serves: a form over the pipeline, painting and search, built with gradio (extra `app`).

Reading order: `limits` (what a visitor may ask for), `work` (one computation at a time, which can be stopped), `html`
(pictures, charts and messages as HTML), `shared` (what tabs have in common), `tabs/` (one file per tab), `page` (all
tabs together), `guard` (what is refused before gradio sees it), `server` (starts it).

Nothing is computed here that a command could not compute: tabs call `pipeline`, `painting`, `search` and `scorer`.
"""
