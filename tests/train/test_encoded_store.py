"""Image tokenizer and scorer learn from encoded pictures what they learn from decoded ones."""

import pytest
from helpers.training import interrupt, outcome

from dalle_mini_impl.data import encoded_pictures


@pytest.mark.parametrize(("stage", "workers"), [("image_tokenizer", 0), ("image_tokenizer", 2), ("scorer", 2)])
def test_a_stage_learns_the_same_from_a_store_of_png(trained, tmp_path, monkeypatch, stage, workers):
    home = trained.copy(tmp_path / "png", stage, "store")
    (home.folder / "model" / f"{stage}.safetensors").unlink(missing_ok=True)
    settings = ("data.store_format=png", f"run.workers={workers}")
    interrupt(home, stage, 7, monkeypatch, *settings)
    assert not (home.folder / "store" / "pixels.npy").exists()
    decoded = []
    decode = encoded_pictures.decode_stored
    monkeypatch.setattr(encoded_pictures, "decode_stored", lambda content: decoded.append(1) or decode(content))
    home.run(stage, "--resume", *settings)
    assert outcome(home, stage) == outcome(trained, stage)
    # Only held-out pictures are decoded here where workers make the batches.
    assert (len(decoded) < 30) == (workers > 0)
