"""The training loop in docs/how-it-works.md, which uses `model/` and nothing of training, learns its task."""

from helpers.training import ROOT


def test_the_documented_training_loop_learns_to_copy():
    text = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    code = text.partition("<!-- training loop -->\n```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) <= 32
    assert "dalle_mini_impl.train" not in code
    names: dict = {}
    exec(compile(code, "how-it-works.md", "exec"), names)
    assert names["loss"].item() < 0.1
    assert (names["sampled"].image_ids == 5).all()
