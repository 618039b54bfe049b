"""One trial: a run of its own below the sweep's folder, in a process of its own.

Ray Tune decides which trials run and which are stopped; what it hears of a trial goes through a
file of lines in the trial's folder. Tune holds the tasks of a trial inside the trial's own
reservation, where those that a stage starts for itself would wait for ever: so the run is a task
outside of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from raysys.cluster import SMALL_CPUS, TASK_CPUS, Resources
from raysys.errors import UserError
from raysys.pipeline import run_stages, stages_to
from raysys.settings import parse_settings
from raysys.stages.context import RunSettings, Share
from raysys.store import read_json, write_json
from raysys.tuning.settings import TuneSettings
from raysys.tuning.space import Values, name_of, trial_config

#: What a finished trial leaves in its folder, and what it tells while it runs.
RESULT_FILE, MISTAKE_FILE, REPORTS_FILE = "trial.json", "mistake.json", "reports.jsonl"
#: Keys of a report. `value`: the best figure so far; `validations`: how many there were.
VALUE, VALIDATIONS, FINAL = "value", "validations", "final"
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Trial:
    """How one trial ended.

    Attributes:
        values: what it changed.
        value: the objective; of a stopped trial the best until then, of a failed one None.
        stopped: whether early stopping ended it.
        problem: why it failed.
        seconds: how long it took; 0 for one that had finished in an earlier run of the sweep.
    """

    values: Values
    value: float | None
    stopped: bool = False
    problem: str | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Of its folder."""
        return name_of(self.values)


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep share.

    Attributes:
        base: the run's config as in its file, with the overrides.
        run: folder of the run whose finished stages they take.
        trials: folder of their runs.
        mark: of trials that would come to the same with the same values; see `kept`.
        in_process: models are trained in the trial's process, which reserves `cpus` and `gpus`.
        memory_gib: of the cluster.
    """

    settings: TuneSettings
    base: dict[str, Any]
    run: Path
    trials: Path
    mark: str
    in_process: bool
    memory_gib: float

    def folder(self, values: Values) -> Path:
        """The run of a trial."""
        return self.trials / name_of(values)

    def kept(self, values: Values) -> dict[str, Any] | None:
        """What a trial told and took that has finished before, from the same config and data."""
        path = self.folder(values) / RESULT_FILE
        found: dict[str, Any] = read_json(path) if path.is_file() else {}
        return found if found.get("mark") == self.mark else None

    def run_settings(self, values: Values) -> RunSettings:
        """The config of a trial."""
        config = trial_config(self.base, values) | {
            "out": str(self.folder(values)),
            "cluster": self.settings.cluster.model_dump(),
        }
        return parse_settings(RunSettings, config, source=f"trial {name_of(values)}")


def trial_cpus(settings: TuneSettings) -> float:
    """CPUs of a trial's process, of what its stages start, and of what Tune starts for it."""
    return 2 * settings.cpus + TASK_CPUS + SMALL_CPUS


def run_trial(config: dict[str, Any], plan: Plan, values: Values) -> None:
    """What Ray Tune runs; a trial that has finished before only tells again what it told then.

    Raises:
        UserError: the run refuses its settings or input.
    """
    import ray
    from ray import tune

    folder = plan.folder(values)
    kept = plan.kept(values)
    if kept is not None:
        for report in kept["reports"]:
            tune.report(report)
        return
    (folder / REPORTS_FILE).unlink(missing_ok=True)
    work = ray.remote(
        num_cpus=plan.settings.cpus if plan.in_process else SMALL_CPUS,
        num_gpus=plan.settings.gpus if plan.in_process else 0,
        max_retries=plan.settings.max_failures,
        scheduling_strategy="SPREAD",
    )(_work)
    task = work.remote(plan, values)
    told, done = 0, False
    while not done:
        done = bool(ray.wait([task], timeout=_SECONDS_BETWEEN_LOOKS)[0])
        for report in _reports(folder / REPORTS_FILE):
            # A process that was started again tells of the same validations again.
            if report[VALIDATIONS] > told:
                told = report[VALIDATIONS]
                tune.report(report)
    found = ray.get(task)
    if "mistake" in found:
        write_json(folder / MISTAKE_FILE, found)
        raise UserError(found["mistake"])
    tune.report({VALUE: found[VALUE], VALIDATIONS: told + 1, FINAL: True})


def _reports(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that another process may be writing."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def _work(plan: Plan, values: Values) -> dict[str, Any]:
    """The run of a trial; a UserError comes back as words, so that Ray does not try it again."""
    import torch

    settings = plan.settings
    torch.set_num_threads(max(1, int(settings.cpus)))
    folder = plan.folder(values)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MISTAKE_FILE).unlink(missing_ok=True)
    pick = min if settings.smaller_is_better else max
    figures: list[float] = []
    # A process of a killed sweep may still be at work here, and a searcher may say a point twice.
    with (
        FileLock(plan.trials / f".{folder.name}.lock"),
        (folder / REPORTS_FILE).open("w", encoding="utf-8") as reports,
    ):

        def watch(stage: str, epoch: int, figure: float) -> None:
            if stage == settings.stage:
                figures.append(figure)
                row = {VALUE: pick(figures), VALIDATIONS: len(figures), "epoch": epoch}
                reports.write(json.dumps(row) + "\n")
                reports.flush()

        share = Share(
            Resources(settings.cpus + TASK_CPUS, settings.gpus, plan.memory_gib),
            (plan.run, plan.trials),
            watch if plan.in_process else None,
        )
        try:
            run = plan.run_settings(values)
            outcomes = run_stages(run, stages_to(run, settings.stage), share)
            found = outcomes[settings.stage].manifest.figures
            if settings.figure not in found:
                has = ", ".join(sorted(found))
                raise UserError(f"stage '{settings.stage}' has no '{settings.figure}', but {has}.")
        except UserError as mistake:
            return {"mistake": str(mistake)}
    return {VALUE: found[settings.figure]}
