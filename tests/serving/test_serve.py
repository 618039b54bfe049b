"""The endpoint on Ray Serve: it answers, on loopback alone, and stops when told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from toy_run import KEY

from raysys.cluster import Resources
from raysys.errors import UserError
from raysys.serving.app import application, start
from raysys.serving.doors import digest_of
from raysys.serving.loadtest import put_load
from raysys.serving.profiles import HttpSettings, Profile
from raysys.serving.settings import ServeSettings
from raysys.settings import parse_settings


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage 'data'"):
        application(ServeSettings(run=tmp_path), {})


@pytest.mark.ray
def test_serve_answers_and_nothing_listens_beyond_loopback(run: Path, local_ray: Resources) -> None:
    from ray import serve

    port = free_port()
    doors = {"requests_per_second": 1.0, "burst": 5}
    settings = ServeSettings.model_validate({"run": run, "doors": doors})
    profile = Profile(http_options=HttpSettings(port=port))
    start(settings, {digest_of("secret"): "test"}, profile)
    try:
        url = f"http://127.0.0.1:{port}/v1/recommend"
        asked = {"user_id": "u2", "k": 5}
        answer = httpx.post(url, json=asked, headers=KEY, timeout=10).json()
        assert answer["items"][0]["item_id"] == "b"
        assert httpx.post(url, json=asked, timeout=10).status_code == 401
        codes = [httpx.post(url, json=asked, headers=KEY).status_code for _ in range(12)]
        assert 3 <= codes.count(200) <= 6
        assert set(codes) == {200, 429}
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in family
            for connection in process.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
    finally:
        serve.shutdown()


@pytest.mark.ray
def test_more_than_it_can_bear_is_told_when_to_come_again(run: Path, local_ray: Resources) -> None:
    from ray import serve

    port = free_port()
    few = {"name": "Ingress", "max_ongoing_requests": 1, "max_queued_requests": 1}
    values = {"http_options": {"port": port}, "applications": [{"deployments": [few]}]}
    doors = {"requests_per_second": 1e6, "burst": 1_000_000}
    settings = ServeSettings.model_validate({"run": run, "doors": doors})
    start(settings, {digest_of("secret"): "test"}, parse_settings(Profile, values, source="test"))
    try:
        url = f"http://127.0.0.1:{port}/v1/recommend"
        load = put_load(url, "secret", [{"user_id": "u2"}], connections=32, seconds=3)
        figures = load.figures()
        assert figures["ok"] > 0
        assert figures["shed"] > 0
        assert figures["errors"] == figures["without_retry_after"] == 0, load.statuses
    finally:
        serve.shutdown()


@pytest.mark.ray
def test_the_command_says_when_it_is_ready_and_stops_on_sigterm(run: Path, tmp_path: Path) -> None:
    port, keys = free_port(), tmp_path / "keys"
    keys.write_text("a-key-of-some-length")
    raysys = Path(sys.executable).with_name("raysys")
    command = [str(raysys), "serve", str(run), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--api-key-file", str(keys)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "RAY_worker_niceness": "0"},
    )
    assert process.stdout is not None
    try:
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        headers = {"Authorization": "Bearer a-key-of-some-length"}
        url = f"http://127.0.0.1:{port}/v1/recommend/u2"
        assert httpx.get(url, headers=headers, timeout=10).status_code == 200
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    time.sleep(0.1)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, headers=headers, timeout=2)
