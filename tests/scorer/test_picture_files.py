"""Embedding of picture files."""

import random

from helpers.pictures import random_picture

from dalle_mini_impl.scorer import picture_files
from dalle_mini_impl.scorer.picture_files import embed_picture_files
from dalle_mini_impl.scorer.scorer import Scorer


def test_embedding_does_not_depend_on_the_pictures_beside_it(tiny_model, tmp_path, monkeypatch):
    scorer = Scorer.from_pretrained(str(tiny_model))
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        random_picture(number).save(path)
    draw = random.Random(0)
    vectors = {path: set() for path in paths}
    for files in (1, 2, 3, 4, 5, 7, 12):
        monkeypatch.setattr(picture_files, "MAX_FILES", files)
        draw.shuffle(paths)
        for batch in embed_picture_files(scorer, paths, lambda path: path):
            for picture in batch:
                vectors[picture.item].add(picture.embedding.numpy().tobytes())
    assert [len(different) for different in vectors.values()] == [1] * 12
