"""The page without a browser: who is served when, what is refused, and what is left when a visitor stops or leaves."""

import json
import threading
from urllib.error import HTTPError

import psutil
import pytest
from helpers.page import Visitor

from dalle_mini_impl.app.limits import MAX_BODY_BYTES, MAX_CANDIDATES, MAX_PROMPT
from dalle_mini_impl.app.server import PageSettings, serve

pytest.importorskip("gradio", reason="needs the extra app")

VALUES = (2, 0, 1.0, 1.0, "auto", 0)
"""Candidates, seed, guidance, temperature, rank and diversity."""


@pytest.fixture(scope="module")
def address(tiny_model):
    with serve(PageSettings(model=str(tiny_model), device="cpu")) as served:
        yield served


def busy(address, session):
    """A visitor whose painting, which takes minutes, has begun, and the page's messages; closing them is leaving."""
    visitor = Visitor(address, session)
    visitor.press("Paint", "a cat", None, 1000, 0, 0)
    messages = visitor.messages()
    assert any("Painting, step" in str(message.get("output")) for message in messages)
    return visitor, messages


def last_message(visitor):
    (*_, last) = [message for message in visitor.messages() if message["msg"] == "process_completed"]
    return last


def test_a_visitor_gets_ranked_pictures(address):
    visitor = Visitor(address, "one")
    visitor.press("Draw", "a red heart", "any", *VALUES)
    messages = [*visitor.messages()]
    shown = [str(message.get("output")) for message in messages if message["msg"] == "process_generating"]
    assert "Drawing, 0%" in shown[0]
    assert "2 candidates in" in shown[-1]
    assert shown[-1].count("download=") == 2


def draw_long(visitor, seed=0):
    """Have a visitor ask for pictures of the longest prompt."""
    visitor.press("Draw", "a cat " * (MAX_PROMPT // 6), "any", 2, seed, *VALUES[2:])
    return visitor


@pytest.mark.slow
def test_fifty_visitors_are_served_in_the_order_in_which_they_came_and_take_bounded_memory(address):
    last_message(draw_long(Visitor(address, "before")))  # allocates what every request takes
    process = psutil.Process()
    before, sizes = process.memory_info().rss, []
    first, messages = busy(address, "first")
    visitors = [Visitor(address, f"visitor-{number}", first.config) for number in range(50)]
    finished, lock, places = [], threading.Lock(), {}

    def wait(number):
        for message in visitors[number].messages():
            with lock:
                if message["msg"] == "estimation":
                    places.setdefault(number, message["rank"])
                elif message["msg"] == "process_completed":
                    assert message["success"]
                    finished.append(number)
                sizes.append(process.memory_info().rss)

    threads = []
    for number, visitor in enumerate(visitors):
        draw_long(visitor, number)
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
    first.stop("Paint")
    assert "Stopped" in str([*messages])
    for thread in threads:
        thread.join()
    assert finished == list(range(50))
    assert places == {number: number for number in range(50)}
    most = (max(sizes) - before) / 2**20
    print(f"50 visitors at once took {most:.0f} MiB")
    assert most < 50 * MAX_BODY_BYTES / 2**20  # whatever they may send while they wait


def test_requests_out_of_range_are_refused_below_their_field(address):
    visitor = Visitor(address, "greedy")
    with pytest.raises(HTTPError) as caught:
        visitor.press("Draw", "x" * (MAX_PROMPT + 1), "any", 2, -1, *VALUES[2:])
    problems = [one["message"] for one in json.loads(caught.value.read())["detail"]]
    assert problems[0] == f"Expected at most {MAX_PROMPT} characters, got {MAX_PROMPT + 1}; shorten it"
    assert problems[3].startswith("Expected a whole number from 0 to")
    assert not any(problems[position] for position in (1, 2, 4, 5, 6, 7))
    with pytest.raises(HTTPError) as caught:
        visitor.press("Draw", "a cat", "any", MAX_CANDIDATES + 1, *VALUES[1:])
    assert f"maximum value {MAX_CANDIDATES}" in caught.value.read().decode()


def test_stopping_frees_the_engine_at_once(address):
    slow, messages = busy(address, "slow")
    next_one = Visitor(address, "next", slow.config)
    next_one.press("Draw", "a cat", "any", *VALUES)
    slow.stop("Paint")
    assert last_message(next_one)["success"]
    assert "Stopped" in str([*messages])


def test_a_visitor_who_leaves_frees_the_engine(address):
    leaving, messages = busy(address, "leaving")
    next_one = Visitor(address, "staying", leaving.config)
    messages.close()
    next_one.press("Draw", "a cat", "any", *VALUES)
    assert last_message(next_one)["success"]
