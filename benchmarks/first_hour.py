"""How long a newcomer waits: from a clone to a report, to an answered request, and for the tests.

A fresh clone of the last commit in a temporary folder; `make quickstart` as README says, an
endpoint of its run, `make test`. RAYSYS_HOME is a fresh folder too, so that assets are fetched and
no reply of the language model is there already; pip's wheels may be cached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

KEY = "first-hour-first-hour"
PORT = 8741


def minutes(act: Callable[[], object]) -> float:
    """How long something takes."""
    start = time.monotonic()
    act()
    return (time.monotonic() - start) / 60


def make(target: str, clone: Path) -> int:
    """A target of the clone's Makefile, its output on standard error; its exit status."""
    environment = os.environ | {"RAYSYS_HOME": str(clone.with_name("home"))}
    return subprocess.run(["make", target], cwd=clone, env=environment, stdout=2).returncode


def must(target: str, clone: Path) -> None:
    """A target that has to succeed."""
    if make(target, clone):
        raise SystemExit(f"make {target} failed")


def first_answer(clone: Path) -> None:
    """Serve the run until it has answered one request."""
    command = [".venv/bin/raysys", "serve", "runs/quickstart", "--port", str(PORT)]
    environment = os.environ | {"RAYSYS_API_KEY": KEY}
    server = subprocess.Popen(command, cwd=clone, env=environment, stdout=2)
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/recommend/1?k=5", headers={"Authorization": f"Bearer {KEY}"}
    )
    try:
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    assert len(json.load(answer)["items"]) == 5
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if server.poll() is not None:
                    raise RuntimeError("the endpoint did not start") from None
                time.sleep(0.2)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def stage_seconds(clone: Path) -> dict[str, float]:
    """What each stage of the run took, the longest first."""
    found = {
        path.parent.name: json.loads(path.read_text())["seconds"]
        for path in (clone / "runs/quickstart").glob("*/manifest.json")
    }
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-tests", action="store_true", help="leave `make test` out")
    parser.add_argument("--into", type=Path, help="a new folder for the clone, which is left there")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if arguments.into is None:
            temporary = tempfile.TemporaryDirectory(prefix="raysys-first-hour-")
            folder = Path(stack.enter_context(temporary))
        else:
            folder = arguments.into.resolve()
            folder.mkdir(parents=True)
        clone = folder / "raysys"
        figures = {}
        root = Path(__file__).parents[1]
        quiet = ["git", "clone", "--quiet", str(root), str(clone)]
        figures["clone_minutes"] = minutes(lambda: subprocess.run(quiet, check=True))
        figures["install_minutes"] = minutes(lambda: must("install", clone))
        quickstart = minutes(lambda: must("quickstart", clone))
        so_far = figures["clone_minutes"] + figures["install_minutes"] + quickstart
        figures["report_minutes"] = so_far
        serving = minutes(lambda: first_answer(clone))
        figures["first_request_minutes"] = so_far + serving
        failed = False
        if not arguments.skip_tests:
            start = time.monotonic()
            failed = make("test", clone) != 0
            figures["test_minutes"] = (time.monotonic() - start) / 60
        stages = {name: round(seconds, 1) for name, seconds in stage_seconds(clone).items()}
    result = {
        "benchmark": "first_hour",
        "figures": {name: round(value, 2) for name, value in figures.items()},
        "stage_seconds": stages,
    }
    print(json.dumps(result))
    if failed:
        raise SystemExit("make test failed")


if __name__ == "__main__":
    main()
