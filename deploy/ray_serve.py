"""`dalle serve` on several machines: replicas of Ray Serve, each with an engine that draws its requests together.

Start it on a Ray cluster, on whose machines this package is installed with the extras serve and ray:

    DALLE_API_KEYS=... serve run deploy/ray_serve.py:app

Environment: DALLE_MODEL (a name that all machines find; default emoji), DALLE_REPLICAS (2), DALLE_CPUS and DALLE_GPUS
of each replica (1 and 0), DALLE_API_KEYS, and DALLE_FOLDER, which the machines share, for pictures at addresses.
"""

import os
from pathlib import Path

from fastapi import FastAPI
from ray import serve

MODEL = os.environ.get("DALLE_MODEL", "emoji")
REPLICAS = int(os.environ.get("DALLE_REPLICAS", "2"))
CPUS, GPUS = float(os.environ.get("DALLE_CPUS", "1")), float(os.environ.get("DALLE_GPUS", "0"))
FOLDER = os.environ.get("DALLE_FOLDER", "dalle-pictures")
KEYS = os.environ.get("DALLE_API_KEYS", "")
WAITING = 256
"""Requests that a replica takes at a time; those beyond wait in Ray's proxy."""


def make_replica() -> FastAPI:
    """The service, on the machine of a replica."""
    import torch

    from dalle_mini_impl.config.serving import ServiceLimits
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.serve.app import make_app
    from dalle_mini_impl.serve.keys import Keys

    torch.set_num_threads(max(1, int(CPUS)))
    dalle = DalleMini.from_pretrained(MODEL, "cuda" if GPUS else "cpu")
    keys = Keys(key.strip() for key in KEYS.split(",") if key.strip())
    return make_app(dalle, (MODEL,), Path(FOLDER), keys=keys, limits=ServiceLimits(queue=WAITING))


replica = serve.deployment(
    serve.ingress(make_replica)(),
    num_replicas=REPLICAS,
    max_ongoing_requests=WAITING,
    ray_actor_options={"num_cpus": CPUS, "num_gpus": GPUS},
    health_check_timeout_s=60,
    graceful_shutdown_timeout_s=60,
)
app = replica.bind()
