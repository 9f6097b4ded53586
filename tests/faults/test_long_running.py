"""Many generations in one process, and several threads on one model."""

from concurrent.futures import ThreadPoolExecutor

import psutil

GROWTH = 24 * 2**20
"""Bytes by which the memory in use may grow after the warm-up: over 500 generations a leak of 50 KB each, a picture or
two of the small model with its ids, exceeds it."""
THREADS = 8


def rss():
    return psutil.Process().memory_info().rss


def test_memory_stays_flat_over_many_generations(tiny_dalle, tries, report):
    count = tries(500, 60)

    def generate(number):
        return tiny_dalle.generate(f"a cat {number}", candidates=3, seed=number, tile=number % 5 == 0, rank="both")

    for number in range(20):
        generate(number)
    before = rss()
    for number in range(count):
        generate(number)
    growth = rss() - before
    assert growth < GROWTH
    report("500 generations in one process", f"{count} generations, memory {growth / 2**20:+.1f} MB")


def test_threads_on_one_model_draw_the_pictures_that_each_draws_alone(tiny_dalle, tries, report):
    count = tries(200, 24)

    def draw(number):
        result = tiny_dalle.generate(
            "a cat" if number % 2 else "a red heart",
            candidates=3,
            keep=3,
            seed=number,
            tile=number % 3 == 0,
            rank="both",
        )
        return [candidate.image.tobytes() for candidate in result]

    alone = [draw(number) for number in range(count)]
    with ThreadPoolExecutor(THREADS) as threads:
        together = list(threads.map(draw, range(count)))
    assert together == alone
    report("8 threads on one model", f"{count} of {count} pictures as alone")
