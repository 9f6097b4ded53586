import pytest

from dalle_mini_impl.train.whole.advice import advise
from dalle_mini_impl.train.whole.folder import Record
from dalle_mini_impl.train.whole.pictures import PictureFacts

FINE = {
    "image_tokenizer": [{"step": 1, "validation_psnr": 25.0}],
    "transformer": [{"step": 1, "validation_image": 4.0}, {"step": 2, "validation_image": 3.8}],
    "scorer": [{"step": 1, "text_to_image_at_1": 0.4}],
}
FIGURES = {
    "caption_nats": {"seen": 40.0},
    "r_precision": {"seen": {"top_5": 0.9}, "held out": {"top_5": 0.6}},
}


def facts(**changes):
    values = {
        "train": 900, "held_out": 50, "without_caption": 0, "characters": 30, "captions": 890, "languages": {"en": 900},
    }  # fmt: skip
    return PictureFacts(**{**values, **changes})


def advice(logs=None, figures=FIGURES, side=100.0, preset="", batch_size=32, **changes):
    record = Record(request={"minutes": 15.0, "preset": preset}, data={"side": side}, figures=figures)
    return " ".join(advise(record, facts(**changes), {**FINE, **(logs or {})}, 96, batch_size))


def test_nothing_stands_out():
    assert advice() == "Nothing stands out. More time (--minutes 30) or more pictures should make it better still."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logs": {"image_tokenizer": [{"step": 1, "validation_psnr": 17.0}]}}, "Reconstructions are poor (17.0 dB"),
        ({"side": 500.0}, "With --minutes 40 or more there may be time for the preset medium, which has 128."),
        ({"figures": {**FIGURES, "caption_nats": {"seen": 1.5}}}, "hardly follow their captions"),
        ({"figures": {**FIGURES, "r_precision": {"seen": {"top_5": 0.2}}}}, "too little time for so many pictures"),
        (
            {"figures": {**FIGURES, "r_precision": {"seen": {"top_5": 0.9}, "held out": {"top_5": 0.1}}}},
            "drawn much less well (10% against 90%)",
        ),
        (
            {"logs": {"transformer": [{"step": 1, "validation_image": 4.0}, {"step": 2, "validation_image": 5.0}]}},
            "begun to recite: its loss on held-out pictures rose from 4.00 to 5.00",
        ),
        ({"logs": {"scorer": [{"step": 1, "text_to_image_at_1": 0.02}]}}, "--rank likelihood"),
        ({"train": 60}, "60 pictures are few"),
        ({"captions": 100}, "Many pictures have the same caption"),
        ({"without_caption": 7}, "7 pictures have no caption"),
    ],
)
def test_each_symptom_has_its_advice(changes, words):
    text = advice(**changes)
    assert words in text
    assert "Nothing stands out" not in text


def test_larger_pictures_are_advised_only_where_a_preset_would_have_them():
    assert "much larger" not in advice(side=500.0, train=60)
    assert "much larger" not in advice(side=500.0, preset="small")


def test_few_held_out_pictures_prove_nothing():
    rising = {"transformer": [{"step": 1, "validation_image": 4.0}, {"step": 2, "validation_image": 5.0}]}
    text = advice(logs={**rising, "scorer": [{"step": 1, "text_to_image_at_1": 0.0}]}, held_out=3)
    assert "recite" not in text
    assert "--rank" not in text


def test_too_few_passes_say_how_long_it_would_take():
    poor = {**FIGURES, "r_precision": {"seen": {"top_5": 0.2}}}
    log = [{"step": 673, "validation_image": 4.0}, {"step": 674, "validation_image": 3.8}]
    text = advice({"transformer": log}, poor)  # 675 steps of 32 are 24 passes over 900
    assert "saw each picture 24 times; about 90 times are needed" in text
    assert "Try --minutes 57, or fewer pictures." in text
    assert "Try --minutes 5700," in advice({"transformer": log}, poor, train=90_000)
    assert "Try --minutes 30." in advice({"transformer": [{**line, "step": 9000} for line in log]}, poor)
