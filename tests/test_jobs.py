"""Jobs as users submit them: a head with a token, exit codes, a second try."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_sweep import RATE, write_run

from benchmarks.ray_head import Head

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    started = Head()
    try:
        started.wait()
        yield started
    finally:
        started.stop()


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
    run, out = write_run(tmp_path, epochs=150), tmp_path / "sweep"
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
