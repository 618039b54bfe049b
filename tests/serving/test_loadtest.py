"""The load test counts what it got."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raysys.errors import UserError
from raysys.serving.loadtest import draw_load, loopback, put_load

BODIES = [{"user_id": str(n)} for n in range(3)]


class Endpoint(BaseHTTPRequestHandler):
    """Answers by user: 200, 429 with Retry-After, 500."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        user = int(json.loads(self.rfile.read(size))["user_id"])
        keyed = self.headers["Authorization"] == "Bearer key"
        self.send_response((200, 429, 500)[user] if keyed else 401)
        self.send_header("Content-Length", "0")
        if user == 1:
            self.send_header("Retry-After", "1")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/recommend"
    server.shutdown()
    server.server_close()


def test_every_answer_is_counted_once(url: str, tmp_path: Path) -> None:
    load = put_load(url, "key", BODIES, connections=2, seconds=1.0, rate=60)
    found = load.figures()
    assert 50 <= found["requests"] <= 70
    assert found["requests"] == found["ok"] + found["shed"] + found["errors"]
    assert abs(found["ok"] - found["shed"]) <= 2
    assert found["errors_5xx"] == found["errors"]
    assert found["without_retry_after"] == 0
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    draw_load(load, tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_nobody_there_is_no_answer() -> None:
    found = put_load("http://127.0.0.1:9/x", "key", BODIES, connections=1, seconds=0.2).figures()
    assert found["no_answer"] == found["errors"] == found["requests"] > 0
    assert "p50_ms" not in found


def test_a_test_is_bounded() -> None:
    with pytest.raises(UserError, match="not on this machine"):
        put_load("http://192.0.2.1/x", "", BODIES, connections=1, seconds=1)
    for values in ({"connections": 5000}, {"seconds": 1e6}, {"connections": 0}):
        asked = {"connections": 1, "seconds": 1.0} | values
        with pytest.raises(UserError, match="a load test has"):
            put_load("http://127.0.0.1:9/x", "", BODIES, **asked)  # type: ignore[arg-type]
    assert loopback("http://[::1]:8000")
    assert not loopback("http://localhost.example.org")
