"""What Prometheus reads of a service."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dalle_mini_impl.serve.engine import Engine

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Bounds of the histograms."""


class Metrics:
    """Counters of one service; several in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry, "namespace": "dalle"}
        self.requests = Counter("requests", "Answered requests.", ["route", "status"], **own)
        self.seconds = Histogram("request_seconds", "Time of requests.", ["route"], buckets=SECONDS, **own)
        self.pictures = Counter("pictures", "Pictures in answers.", **own)
        self.batch = Histogram("batch_candidates", "Candidates drawn together.", buckets=CANDIDATES, **own)
        self.given_up = Counter("given_up", "Requests whose clients went away.", **own)
        self._waiting = Gauge("waiting_candidates", "Candidates that wait or are being drawn.", **own)
        self.in_hand = Gauge("in_hand_requests", "Requests that are read, wait or are drawn.", **own)

    def follow(self, engine: Engine) -> None:
        """Tell what waits in an engine."""
        self._waiting.set_function(lambda: engine.candidates)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
