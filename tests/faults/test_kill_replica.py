"""A replica is killed under load: the other one answers, and a new one comes.

`RAYSYS_KILLS=5 pytest tests/faults/test_kill_replica.py` kills one of the two five times.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
from toy_run import write_run

from raysys.cluster import Resources
from raysys.serving.app import start
from raysys.serving.doors import digest_of
from raysys.serving.loadtest import Load, put_load
from raysys.serving.profiles import Profile
from raysys.serving.settings import ServeSettings
from raysys.settings import parse_settings

pytestmark = pytest.mark.ray
KILLS = int(os.environ.get("RAYSYS_KILLS", "1"))
#: Seconds in which there must be two again.
HEALTHY = 20


def replicas() -> set[int]:
    """Process ids of the ingress replicas that live."""
    family = psutil.Process().children(recursive=True)
    return {
        one.pid
        for one in family
        if one.status() != psutil.STATUS_ZOMBIE
        and "ServeReplica:raysys:Ingress" in " ".join(one.cmdline())
    }


def test_nobody_notices_a_killed_replica(tmp_path: Path, local_ray: Resources) -> None:
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    deployments = [{"name": "Ingress", "num_replicas": 2, "health_check_period_s": 1}]
    values = {"http_options": {"port": port}, "applications": [{"deployments": deployments}]}
    doors = {"requests_per_second": 1e6, "burst": 1_000_000}
    settings = ServeSettings.model_validate({"run": write_run(tmp_path / "run"), "doors": doors})
    start(settings, {digest_of("secret"): "test"}, parse_settings(Profile, values, source="test"))
    try:
        before = replicas()
        assert len(before) == 2
        found: list[Load] = []

        def load() -> None:
            url = f"http://127.0.0.1:{port}/v1/recommend"
            bodies = [{"user_id": "u2"}]
            found.append(put_load(url, "secret", bodies, connections=4, seconds=15, rate=40))

        for _ in range(KILLS):
            before = replicas()
            thread = threading.Thread(target=load)
            thread.start()
            time.sleep(4)
            killed = min(before)
            psutil.Process(killed).kill()
            deadline = time.monotonic() + HEALTHY
            thread.join()
            while len(replicas()) < 2 and time.monotonic() < deadline:
                time.sleep(0.5)
            assert killed not in replicas()
            assert len(replicas()) == 2
        figures = [load.figures() for load in found]
        requests, errors = (sum(one[name] for one in figures) for name in ("requests", "errors"))
        assert requests > 200 * KILLS
        # What a killed one was working on is lost: a request or two.
        assert errors <= max(2 * KILLS, 0.005 * requests), [load.unanswered for load in found]
    finally:
        serve.shutdown()
