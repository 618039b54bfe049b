"""Profiling killed at 10, 50 and 90 %: finished rows stay, the end is the same."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from raysys.store import read_table, sha256_file

JOB = Path(__file__).parent / "slow_echo_job.py"
ROWS = 40
#: Blocks that can be open when the kill comes: two in work and two finished but not yet written.
OPEN_ROWS = 4 * 4


def finished(output: Path) -> int:
    """Replies that are safe, seen from outside."""
    cache = output / "replies.sqlite"
    if not cache.is_file():
        return 0
    try:
        with closing(sqlite3.connect(cache)) as connection:
            return connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0]
    except sqlite3.OperationalError:  # not created yet
        return 0


def run_job(output: Path, seconds: float) -> None:
    done = subprocess.run(
        [sys.executable, str(JOB), str(output), str(ROWS), str(seconds)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    run_job(output, 0.0)
    return output


@pytest.mark.ray
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_killed_driver_goes_on_where_it_stopped(share, undisturbed, tmp_path):
    job = subprocess.Popen(
        [sys.executable, str(JOB), str(tmp_path), str(ROWS), "0.05"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while finished(tmp_path) < share * ROWS and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL, "the kill came too late to prove anything"
    time.sleep(3)  # Ray notices that its driver is gone and ends the workers.
    kept = finished(tmp_path)
    assert share * ROWS <= kept < ROWS
    before = sum(1 for _ in (tmp_path / "asked").iterdir())
    run_job(tmp_path, 0.0)
    asked = Counter(path.name.rpartition(".")[0] for path in (tmp_path / "asked").iterdir())
    assert set(asked) == {f"item {row}" for row in range(ROWS)}
    assert sum(asked.values()) == before + ROWS - kept, "a finished row was generated again"
    assert sum(asked.values()) <= ROWS + OPEN_ROWS
    replies = tmp_path / "replies.parquet"
    assert sha256_file(replies) == sha256_file(undisturbed / "replies.parquet")
    assert read_table(replies).num_rows == ROWS
