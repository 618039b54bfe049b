"""Jobs as users submit them: a head with a token, exit codes, a second try."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_sweep import RATE, write_run

pytestmark = pytest.mark.ray
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
        deadline = time.monotonic() + 90
        while self.ray("list").returncode and time.monotonic() < deadline:
            assert self._process.poll() is None
            time.sleep(1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    started = Head()
    try:
        started.wait()
        yield started
    finally:
        started.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_without_its_token_a_head_takes_no_job(head: Head) -> None:
    job = ("submit", "--working-dir", ".", "--", "python", "jobs/train.py", "run.toml")
    refused = head.ray(*job, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert refused.returncode != 0
    assert "Invalid authentication token" in refused.stdout
    assert "submitted successfully" not in refused.stdout


def test_a_users_mistake_ends_a_job_with_code_2(head: Head, tmp_path: Path) -> None:
    run = write_run(tmp_path)
    job = (
        "submit",
        "--working-dir",
        ".",
        "--",
        "python",
        "jobs/train.py",
        str(run),
        "trian.epochs=2",
    )
    ended = head.ray(*job)
    assert ended.returncode != 0
    assert "exit code 2" in ended.stdout
    assert "unknown key 'trian': did you mean 'train'?" in ended.stdout


def test_a_sweep_that_is_stopped_and_submitted_again_goes_on(head: Head, tmp_path: Path) -> None:
    run, out = write_run(tmp_path, epochs=60), tmp_path / "sweep"
    config = tmp_path / "sweep.toml"
    config.write_text(
        f'out = "{out}"\nrun = "{run}"\nconcurrent = 1\n[space]\n"{RATE}" = [0.01, 0.02, 0.03]\n'
    )
    entry = ("--working-dir", ".", "--", "python", "jobs/tune.py", str(config))
    first = head.ray("submit", "--no-wait", "--submission-id", "first", *entry)
    assert first.returncode == 0, first.stdout
    deadline = time.monotonic() + 120
    while not list(out.rglob("trial.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    head.ray("stop", "first")
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("trial.json")}
    assert 1 <= len(kept) < 3
    assert not (out / "results.json").exists()
    again = head.ray("submit", *entry, "--resume")
    assert again.returncode == 0, again.stdout
    # Progress of the driver is in the job's log.
    assert "sweep: 3 trials, 1 at a time" in again.stdout
    results = json.loads((out / "results.json").read_text())
    assert results["counts"] == {"in": 3, "ok": 3, "dead_letter": 0, "stopped_early": 0}
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in kept.items())


def test_what_a_job_sends_leaves_out_environments_and_runs() -> None:
    ignored = (ROOT / ".rayignore").read_text().split()
    assert {".venv/", "runs/", ".git/"} <= set(ignored)
