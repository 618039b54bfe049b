"""A Ray head for trying jobs: on loopback, with a token, ended by its process id."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


class Head:
    """A Ray head on loopback that only speaks to who has its token."""

    def __init__(self) -> None:
        ports = _free_ports(2)
        self.address = f"http://127.0.0.1:{ports[0]}"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_worker_niceness": "0",
            # Every server of this head binds 127.0.0.1.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        self._process = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--head", "--block", "--disable-usage-stats"),
                *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
                *(f"--dashboard-port={ports[0]}", f"--port={ports[1]}"),
                *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
                *("--num-cpus=4", "--object-store-memory=200000000"),
            ],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ray(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job …` as a user types it, in the repository."""
        command = [str(BIN / "ray"), "job", words[0], "--address", self.address, *words[1:]]
        return subprocess.run(
            command,
            env=self.environment | environment,
            cwd=ROOT,
            text=True,
            timeout=240,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> None:
        """Until it takes jobs."""
        deadline = time.monotonic() + 90
        while self.ray("list").returncode and time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError("ray start ended")
            time.sleep(1)

    def stop(self) -> None:
        """End it and all that it started."""
        self._process.terminate()
        self._process.wait(timeout=60)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
