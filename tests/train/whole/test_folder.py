import json

import pytest

from dalle_mini_impl.train.whole.folder import Record, Request, RunFolder, StageRecord, read_log, training_seconds
from dalle_mini_impl.util.errors import UserError


def make_record():
    from dataclasses import asdict

    record = Record(request=asdict(Request(source="pictures", minutes=3.0, settings=("run.seed=1",))))
    record.stages["encode"] = StageRecord(config="x", seconds=2.0, result="y")
    record.seconds["pictures"] = 1.5
    return record


def test_a_record_reads_back(tmp_path):
    folder = RunFolder(tmp_path / "out")
    assert folder.load() is None
    folder.save(make_record())
    record = folder.load()
    assert record == make_record() or record.asked == make_record().asked
    assert record.stages == make_record().stages
    assert record.spent == 3.5


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"request": {}, "stages": {}}', '{"request": 3, "stages": {"encode": {"wings": 2}}}', "\xff",
        '{"request": {"source": "a", "minutes": "x", "settings": []}, "stages": {}}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"is damaged .*; add --overwrite to train anew") as caught:
        RunFolder(tmp_path).load()
    assert "\n" not in str(caught.value)


def test_seconds_of_a_resumed_stage_are_added(tmp_path):
    log = tmp_path / "log.jsonl"
    seconds = [(0, 1.0), (1, 2.5), (2, 0.5), (3, 1.5)]
    log.write_text("".join(json.dumps({"step": step, "seconds": value}) + "\n" for step, value in seconds) + '{"step"')
    assert training_seconds(log) == 4.0
    assert len(read_log(log)) == 4
    assert training_seconds(tmp_path / "none") == 0.0


def test_only_what_the_command_wrote_is_set_aside(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save(make_record())
    (tmp_path / "model").mkdir()
    (tmp_path / "store.efficientnet-64px.safetensors").touch()
    folder.set_aside()
    assert [path.name for path in tmp_path.iterdir()] == ["earlier"]
    assert len(list((tmp_path / "earlier").iterdir())) == 3
    folder.save(make_record())
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"thesis\.txt"):
        folder.set_aside()
