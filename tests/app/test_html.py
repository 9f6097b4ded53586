"""Pictures, charts and messages as HTML."""

import base64
import io
import re

import pytest
from PIL import Image

from dalle_mini_impl.app import html
from dalle_mini_impl.util.save_picture import parse_metadata

RED = Image.new("RGB", (2, 2), "red")
HOSTILE = '<b onclick="x()">\'`${1}'


def test_a_gallery_describes_each_picture_and_offers_it_with_its_metadata():
    tile = html.Tile(RED, "a heart, score 2", "score 2", "heart.png", {"seed": 7})
    shown = html.gallery([tile, html.Tile(RED, "other", dimmed=True)], choosable=True)
    assert re.findall(r'<img [^>]*alt="([^"]*)"', shown) == ["a heart, score 2", "other"]
    assert re.findall(r'aria-label="(Choose[^"]*)"', shown) == [
        "Choose picture 1: a heart, score 2",
        "Choose picture 2: other",
    ]
    (link,) = re.findall(r'<a href="data:image/png;base64,([^"]*)" download="heart.png"', shown)
    content = base64.b64decode(link)
    assert parse_metadata(content, "it") == {"seed": 7}
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == (255, 0, 0)
    assert shown.count('class="dimmed"') == 1


@pytest.mark.parametrize(
    "shown",
    [
        html.gallery([html.Tile(RED, HOSTILE, HOSTILE, HOSTILE)], choosable=True),
        html.picture(RED, HOSTILE),
        html.status(HOSTILE, 0.5),
        html.problem(HOSTILE),
        html.histogram([1.0, 2.0], 1, HOSTILE),
        html.pieces([(1, HOSTILE)]),
        html.bars([html.Bar(HOSTILE, 0.5, RED, True)], HOSTILE),
    ],
)
def test_text_from_outside_is_no_html(shown):
    assert not re.search(r"<b[ >]|onclick=[\"']", shown)


def test_a_histogram_counts_every_candidate_and_marks_the_kept_ones():
    shown = html.histogram([5.0, 4.0, 1.0, 1.0, 0.0], 2, "Scores")
    heights = {"kept": [], "others": []}
    for css, height in re.findall(r'<rect class="(kept|others)"[^>]*height="([0-9.]+)"', shown):
        heights[css].append(float(height))
    unit = html.CHART_HEIGHT / 2
    assert heights == {"kept": [unit * 2], "others": [unit, unit * 2]}  # 5 and 4 share the last of five bars
    assert "Scores of 5 candidates, from 0.00 to 5.00; the 2 that are shown are marked" in shown


def test_a_histogram_of_equal_scores_is_one_bar():
    assert html.histogram([3.0] * 4, 4, "Scores").count("<rect") == 1


def test_the_token_grid_has_the_ids_so_far_and_marks_the_current_cell():
    shown = html.id_grid([[7, 8], [9, None]], (1, 0))
    assert re.findall(r"<td[^>]*>(\d*)</td>", shown) == ["7", "8", "9", ""]
    assert re.findall(r'<td class="current">(\d+)</td>', shown) == ["9"]
    assert "3 of 4 image ids" in shown


def test_bars_say_probabilities_in_words_too():
    shown = html.bars([html.Bar("id 4", 0.25, RED, True), html.Bar("id 5", 0.125, RED, False)], "title")
    assert "25.0% sampled" in shown
    assert "12.5%<" in shown
    assert re.findall(r'<progress [^>]*value="([0-9.]+)"', shown) == ["0.2500", "0.1250"]
