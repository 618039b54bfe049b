"""A sweep against its trials run one after another as full pipelines, and what a trial costs more.

`work_ratio`: seconds of `--pipelines` full pipelines (each with an empty cache of replies), for as
many as the sweep has trials, over the seconds that the sweep works. `driver_overhead_s`: what a
trial of a second sweep takes beyond its stages, on one of the places that run at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from raysys.cluster import ClusterSettings, connect
from raysys.manifest import read_manifest
from raysys.observe import configure_logging
from raysys.pipeline import run_stages
from raysys.settings import load_settings, parse_settings
from raysys.stages.context import RunSettings
from raysys.tuning.settings import TuneSettings
from raysys.tuning.sweep import TRIALS, Sweep, run_sweep
from raysys.tuning.trial import trial_cpus

STAGES = ("data", "item_profiles", "user_profiles", "embeddings", "train")
MODELS = 'models={ con = { backbone = "lightgcn", alignment = { kind = "con" } } }'
GRID = {
    "models.con.alignment.temperature": [0.1, 0.2, 0.5, 1.0],
    "models.con.alignment.kd_weight": [0.001, 0.01, 0.1],
}


def stage_seconds(sweep: Sweep, trials: str = "*") -> float:
    """Seconds of the finished stages of some trials; what is linked to counts once."""
    made = {}
    for manifest in (sweep.settings.out / TRIALS).glob(f"{trials}/*/manifest.json"):
        read = read_manifest(manifest.parent)
        if read is not None:
            made[manifest.stat().st_ino] = read.seconds
    return sum(made.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.toml"))
    parser.add_argument("--pipelines", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--k-core", type=int, default=40, help="fewer users and items, fewer texts")
    arguments = parser.parse_args()
    configure_logging()
    changed = (MODELS, f"data.k_core={arguments.k_core}", f"train.epochs={arguments.epochs}")
    with tempfile.TemporaryDirectory() as work:
        os.environ["TMPDIR"] = work
        folder = Path(work)
        pipelines = [
            pipeline(arguments.config, changed, folder / f"p{number}")
            for number in range(arguments.pipelines)
        ]
        figures = swept(arguments.config, changed, folder, statistics.mean(pipelines))
    print(json.dumps({"benchmark": "sweep", "figures": figures}))


def pipeline(config: Path, changed: tuple[str, ...], out: Path) -> float:
    """Seconds of all stages of one run, from an empty cache."""
    run = load_settings(RunSettings, config, [*changed, f"out={out}", *_cache(out)])
    outcomes = run_stages(run, STAGES)
    return sum(outcome.manifest.seconds for outcome in outcomes.values())


def _cache(out: Path) -> list[str]:
    return [f"profiles.cache={out}.cache"]


def swept(config: Path, changed: tuple[str, ...], folder: Path, one: float) -> dict[str, Any]:
    """Figures of the sweep, and of a second one with trials that do next to nothing."""

    def sweep(name: str, overrides: tuple[str, ...], **values: Any) -> TuneSettings:
        given = {
            "out": str(folder / name),
            "run": str(config),
            "space": GRID,
            "overrides": (*overrides, f"out={folder / 'none'}", *_cache(folder / name)),
        }
        return parse_settings(TuneSettings, given | values, source=name)

    settings = sweep("sweep", changed, early_stopping={"grace": 5, "reduction": 3})
    found = run_sweep(settings)
    work = stage_seconds(found, "base") + sum(trial.seconds for trial in found.trials)
    count = len(found.trials)
    small = ('models={ con = { backbone = "lightgcn" } }', *changed[1:2], "train.epochs=2")
    space = {"train.learning_rate": [1e-4 * 1.3**power for power in range(count)]}
    quick = sweep("quick", small, space=space, cluster={"cpus": 7})
    at_a_time = int(7 // trial_cpus(quick))
    with connect(ClusterSettings(cpus=7)):
        start = time.monotonic()
        done = run_sweep(quick)
        wall = time.monotonic() - start
    overhead = (wall * at_a_time - stage_seconds(done)) / count
    return {
        "trials": count,
        "stopped_early": sum(trial.stopped for trial in found.trials),
        "pipeline_s": round(one, 1),
        "pipelines_s": round(one * count, 1),
        "sweep_work_s": round(work, 1),
        "sweep_wall_s": round(found.seconds, 1),
        "work_ratio": round(one * count / work, 2),
        "driver_overhead_s": round(overhead, 2),
    }


if __name__ == "__main__":
    main()
