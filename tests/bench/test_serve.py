import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from dalle_mini_impl.bench.serve import Load, serve_rows, service
from dalle_mini_impl.util.errors import UserError


def test_percentiles_and_rates():
    load = Load(2.0, [0.1] * 10 + [0.2] * 9 + [5.0], 1.5)
    assert load.each == 0.1
    assert (load.percentile(0.5), load.percentile(0.95), load.percentile(0)) == (0.2, 5.0, 0.1)
    assert str(load) == "10.0 pictures/s, p50 0.20 s, p95 5.00 s, CPU time 75 ms/picture"


def test_a_service_that_does_not_start_is_told():
    with pytest.raises(UserError, match="expected a service that starts"), service(["-c", "print('no')"]):
        pass


@pytest.mark.slow
def test_a_service_and_a_plain_loop_are_measured(tiny_model):
    rows = list(serve_rows("cpu", 1, str(tiny_model), clients=(1, 3), requests=2))
    assert [row.name for row in rows] == ["serve/1", "serve/3"]
    for row in rows:
        assert row.peer == "plain loop"
        assert row.details["ours"]["pictures_per_second"] == pytest.approx(1 / row.ours)
        assert row.details["ours"]["cpu_seconds_per_picture"] > 0
        assert row.details["plain loop"]["p95"] >= row.details["plain loop"]["p50"] > 0
    with pytest.raises(UserError, match="expected a service that starts"):
        list(serve_rows("cpu", 1, "nothing"))
