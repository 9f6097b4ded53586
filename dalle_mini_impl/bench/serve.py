"""Rows of `dalle serve`: pictures per second and latencies of many clients, beside a plain loop around the model."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import psutil

from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.serve.keys import VARIABLE
from dalle_mini_impl.util.errors import UserError

CLIENTS = (1, 8, 32)
"""Numbers of clients, each of which sends its next request when it has its answer."""
REQUESTS = 6
"""Requests of each client."""
PROMPTS = ("a red heart", "a smiling face", "a cat", "a tomato", "a blue circle", "a green apple", "a dog", "a star")
TIMEOUT = 120.0
"""Seconds that a client waits for an answer."""


class Load(NamedTuple):
    """What clients have measured together."""

    seconds: float
    """From the first request to the last answer."""
    latencies: list[float]
    """Seconds of each request, ascending."""
    cpu_seconds: float
    """CPU time of the service meanwhile, which other programs of the machine change little."""

    @property
    def each(self) -> float:
        """Seconds per picture."""
        return self.seconds / len(self.latencies)

    def percentile(self, share: float) -> float:
        """Latency that this share of the requests does not exceed."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    def __str__(self) -> str:
        p50, p95 = self.percentile(0.5), self.percentile(0.95)
        cpu = 1000 * self.cpu_seconds / len(self.latencies)
        return f"{1 / self.each:.1f} pictures/s, p50 {p50:.2f} s, p95 {p95:.2f} s, CPU time {cpu:.0f} ms/picture"


def serve_rows(
    device: str, repeats: int, model: str = "emoji", clients: Sequence[int] = CLIENTS, requests: int = REQUESTS
) -> Iterator[BenchRow]:
    """Time requests of one picture each, from several clients at once, in a process of their own.

    Args:
        device: to draw on.
        repeats: rounds of which the fastest counts.
        model: checkpoint.
        clients: numbers of clients.
        requests: of each client.

    Yields:
        Rows named `serve/CLIENTS`, in seconds per picture.

    Raises:
        UserError: a service does not start, or answers with an error.
    """
    own = ["-m", "dalle_mini_impl", "serve", "--port", "0", "--queue", str(2 * max(clients))]
    plain = ["-m", "dalle_mini_impl.bench.plain_service"]
    with ExitStack() as stack:
        options = ["--model", model, "--device", device]
        services = [stack.enter_context(service([*command, *options])) for command in (own, plain)]
        for one in services:
            load(*one, 1, 2)  # compiles, and allocates
        single = None
        for count in clients:
            # In turns, so that what else the machine does falls on both.
            rounds = [[load(*one, count, requests) for one in services] for _ in range(repeats)]
            ours, theirs = (min(one, key=lambda load: load.seconds) for one in zip(*rounds, strict=True))
            single = single or ours.each
            note = f"{ours}; plain loop: {theirs}; {single / ours.each:.1f}× one client"
            details = {
                name: {
                    "pictures_per_second": 1 / one.each,
                    "p50": one.percentile(0.5),
                    "p95": one.percentile(0.95),
                    "cpu_seconds_per_picture": one.cpu_seconds / len(one.latencies),
                }
                for name, one in (("ours", ours), ("plain loop", theirs))
            }
            yield BenchRow(f"serve/{count}", ours.each, "plain loop", theirs.each, note=note, details=details)


@contextmanager
def service(command: Sequence[str]) -> Iterator[tuple[psutil.Process, int]]:
    """A service in another process, and its port, which it prints.

    Raises:
        UserError: it ended.
    """
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=variables)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("serving "):
            raise UserError("expected a service that starts, got one that ended; its reason stands above")
        yield psutil.Process(process.pid), int(line.rpartition(":")[2].partition("/")[0])
    finally:
        process.terminate()
        process.communicate()


def load(process: psutil.Process, port: int, clients: int, requests: int) -> Load:
    """Have several clients draw at the same time, each one picture after the other.

    Raises:
        UserError: an answer was an error.
    """
    latencies: list[float] = []
    failures: list[str] = []
    together = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        together.wait()
        for index in range(requests):
            seed = number * requests + index
            fields = {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "quality": "low"}
            body = json.dumps({**fields, "response_format": "b64_json"})
            start = time.perf_counter()
            try:
                connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                failures.append(str(error))
                return
            latencies.append(time.perf_counter() - start)
            if answer.status != 200:
                failures.append(content[:200].decode("utf-8", "replace"))
                return
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    together.wait()
    start, cpu_before = time.perf_counter(), sum(process.cpu_times()[:2])
    for thread in threads:
        thread.join()
    seconds, cpu_seconds = time.perf_counter() - start, sum(process.cpu_times()[:2]) - cpu_before
    if failures:
        raise UserError(f"expected answers with pictures, got {failures[0]}; start it again")
    return Load(seconds, sorted(latencies), cpu_seconds)
