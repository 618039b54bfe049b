"""What a job submission costs over the same command at a prompt, and what each stage adds.

`submit_overhead_s`: `ray job submit` of a command that does nothing, less that command itself, the
median of `--times`. `stage_overhead_s`: a run of cheap stages, less what its stages say they took,
by stage, with Ray connected.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.ray_head import BIN, Head
from raysys.cluster import ClusterSettings, connect
from raysys.pipeline import run_stages
from raysys.settings import load_settings
from raysys.stages.context import RunSettings

STAGES = ("data", "train", "evaluate", "recommend")
NOTHING = ("python", "-c", "import raysys.cli")


def seconds(act: Callable[[], object], times: int) -> list[float]:
    """How long each of some calls takes."""
    found = []
    for _ in range(times):
        start = time.monotonic()
        act()
        found.append(time.monotonic() - start)
    return found


def submitted(head: Head) -> None:
    """A job from submission to its end."""
    ended = head.ray("submit", "--working-dir", ".", "--", *NOTHING)
    if ended.returncode:
        raise RuntimeError(ended.stdout)


def stage_overhead(folder: Path) -> float:
    """Seconds by stage beyond what the stages took."""
    overrides = [f"out={folder}"]
    overrides += ['models={ m = { backbone = "ease" } }']
    settings = load_settings(RunSettings, Path("configs/quickstart.toml"), overrides)
    with connect(ClusterSettings()):
        start = time.monotonic()
        outcomes = run_stages(settings, STAGES)
        wall = time.monotonic() - start
    worked = sum(outcome.manifest.seconds for outcome in outcomes.values())
    return (wall - worked) / len(STAGES)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    plain = seconds(lambda: subprocess.run([BIN / NOTHING[0], *NOTHING[1:]], check=True), times)
    head = Head()
    try:
        head.wait()
        submitted(head)
        jobs = seconds(lambda: submitted(head), times)
    finally:
        head.stop()
    with tempfile.TemporaryDirectory() as folder:
        overhead = stage_overhead(Path(folder) / "run")
    figures = {
        "plain_s": round(statistics.median(plain), 2),
        "job_s": round(statistics.median(jobs), 2),
        "submit_overhead_s": round(statistics.median(jobs) - statistics.median(plain), 2),
        "stage_overhead_s": round(overhead, 3),
    }
    print(json.dumps({"benchmark": "job", "figures": figures}))


if __name__ == "__main__":
    main()
