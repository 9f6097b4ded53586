import re
import xml.etree.ElementTree as ElementTree

import pytest

from dalle_mini_impl.train.whole.charts import line_chart, thin, ticks


def paths(chart):
    root = ElementTree.fromstring(chart.partition("</svg>")[0] + "</svg>")
    return [
        re.findall(r"[\d.]+", path.get("d")) for path in root.iter("path") if path.get("class", "").startswith("line")
    ]


def test_points_lie_where_they_should():
    chart = line_chart("loss", {"a": [(0, 0), (50, 5), (100, 10)]}, "nats")
    (values,) = paths(chart)
    x, y = [float(value) for value in values[::2]], [float(value) for value in values[1::2]]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert y[0] > y[1] > y[2]  # down is positive


def test_names_and_titles_are_escaped():
    chart = line_chart('"<x>', {"<script>": [(0, 1), (1, 2)]}, "&")
    assert "<script>" not in chart
    assert "&lt;script&gt;" in chart
    ElementTree.fromstring(chart.partition("</svg>")[0] + "</svg>")


def test_a_line_needs_two_points():
    assert line_chart("x", {"a": [(0, 1)], "b": []}, "") == ""
    assert len(paths(line_chart("x", {"a": [(0, 1)], "b": [(0, 2), (1, 2)]}, ""))) == 1


def test_long_lines_are_thinned():
    line = [(float(x), 2.0 * x) for x in range(1001)]
    points = thin(line)
    assert len(points) <= 200
    assert points[0] == (2.5, 5.0)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (0.001, 0.0012), (5, 5.5), (0, 12345)])
def test_ticks_are_round_and_inside(low, high):
    values = ticks(low, high)
    assert 2 <= len(values) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)
