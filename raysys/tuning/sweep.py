"""Run a sweep: plan it, let Ray Tune run its trials, keep what each came to.

A sweep that was killed goes on when the same command is given again: finished trials are kept in
their folders and only told to the searcher again, the others go on from their checkpoints. Nothing
that Ray Tune has pickled is ever read.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from raysys.cluster import at_a_time, connect, several
from raysys.errors import UserError
from raysys.pipeline import ELMREC, GRAPH_LM, YES_NO, run_stages, stages_to
from raysys.runs import RunDirectory
from raysys.settings import override_values, parse_settings, read_values
from raysys.stages.context import RunSettings, Share
from raysys.store import fingerprint, write_json
from raysys.tuning.ray_tune import run_trials
from raysys.tuning.settings import TuneSettings
from raysys.tuning.space import check_space
from raysys.tuning.trial import Plan, Trial, trial_cpus

TRIALS, SWEEP_FILE = "trials", "sweep.json"
#: The trial that changes nothing: what no trial changes is done here, if the run has not done it.
_BASE = "base"
_TUNE_FOLDER = ".tune"
#: Stages that can be trained in a trial's own process, and what they need of their kind.
_IN_PROCESS = {"train", *ELMREC, *GRAPH_LM, *YES_NO}
#: Sections of a config that a stage may read, where they are not its name's first word or words.
_SECTIONS = {
    "item_profiles": ("profiles",),
    "user_profiles": ("profiles",),
    "train": ("train", "models"),
    "refit": ("train", "models"),
    "explain": ("rerank",),
    **dict.fromkeys(ELMREC, ("elmrec",)),
    **dict.fromkeys(GRAPH_LM, ("graph_lm",)),
    **dict.fromkeys(YES_NO, ("yes_no",)),
}


@dataclass(frozen=True)
class Sweep:
    """A sweep that has run.

    Attributes:
        trials: all of them, the best first, failed ones last.
        seconds: how long this run of it took.
    """

    settings: TuneSettings
    base: dict[str, Any]
    trials: tuple[Trial, ...]
    seconds: float

    @property
    def best(self) -> Trial:
        """The best trial that was not stopped."""
        return next(trial for trial in self.trials if not trial.stopped and not trial.problem)

    def folder(self, trial: Trial) -> Path:
        """The run of a trial."""
        return self.settings.out.resolve() / TRIALS / trial.name


def run_sweep(settings: TuneSettings, *, resume: bool = False) -> Sweep:
    """Run all trials that have not finished yet.

    Raises:
        UserError: the sweep or its run refuse a setting; `resume` and nothing to go on with; or
            no trial came to an end.
    """
    out = settings.out.resolve()
    if resume and not (out / SWEEP_FILE).is_file():
        raise UserError(f"{out} holds no sweep to go on with: leave --resume out.")
    base = read_values(settings.run)
    override_values(base, settings.overrides)
    run = parse_settings(RunSettings, base, source=str(settings.run))
    check_space(settings, base)
    stages = stages_to(run, settings.stage)
    before = unchanged(settings, stages)
    in_process = _trains_here(settings, run, stages[len(before) :])
    start, each = time.monotonic(), trial_cpus(settings)
    room = several(
        settings.cluster, settings.cpus, settings.gpus, each - settings.cpus, settings.concurrent
    )
    with RunDirectory(out).lock(), connect(room) as have:
        (out / TRIALS).mkdir(exist_ok=True)
        write_json(out / SWEEP_FILE, settings.model_dump(mode="json"))
        once = run.model_copy(update={"out": out / TRIALS / _BASE, "cluster": settings.cluster})
        done = run_stages(once, before, Share(have, (run.out, out / TRIALS))) if before else {}
        plan = Plan(
            settings=settings,
            base=base,
            run=run.out.resolve(),
            trials=out / TRIALS,
            mark=_mark(settings, base, [one.manifest.output_hash() for one in done.values()]),
            in_process=in_process,
            memory_gib=have.memory_gib,
        )
        together = at_a_time(have, each, settings.gpus, settings.concurrent, "trial")
        trials = run_trials(plan, together, out / _TUNE_FOLDER)
    sign = 1 if settings.smaller_is_better else -1
    trials.sort(key=lambda one: math.inf if one.value is None else sign * one.value)
    sweep = Sweep(settings, base, tuple(trials), time.monotonic() - start)
    if not any(trial.value is not None and not trial.stopped for trial in trials):
        problem = next((trial.problem for trial in trials if trial.problem), "all were stopped")
        raise UserError(f"no trial came to an end: {problem}")
    return sweep


def _mark(settings: TuneSettings, base: dict[str, Any], inputs: list[str]) -> str:
    """The same only where a trial with the same values would come to the same."""
    config = {key: value for key, value in base.items() if key not in ("out", "cluster")}
    chosen = settings.model_dump(mode="json", include={"objective", "early_stopping"})
    # Dates in a TOML file are the one kind of value that JSON has not.
    return fingerprint({"config": to_jsonable_python(config), **chosen, "inputs": inputs})


def unchanged(settings: TuneSettings, stages: tuple[str, ...]) -> tuple[str, ...]:
    """The first stages, which read nothing that the sweep changes: done once, before all trials."""
    swept = {key.partition(".")[0] for key in settings.space}
    found = []
    for stage in stages:
        if swept & set(_SECTIONS.get(stage, (stage,))):
            break
        found.append(stage)
    return tuple(found)


def _trains_here(settings: TuneSettings, run: RunSettings, stages: tuple[str, ...]) -> bool:
    """Whether trials train in their own process, which alone can tell of each validation."""
    if set(stages) <= _IN_PROCESS and settings.cluster.train_workers == 1:
        if settings.early_stopping and settings.stage == "train" and len(run.models) > 1:
            raise UserError(
                f"early_stopping follows one model, and {settings.run} has {len(run.models)} "
                "[models]: keep the one that is swept, or leave early_stopping out."
            )
        return True
    if settings.early_stopping:
        others = [stage for stage in stages if stage not in _IN_PROCESS]
        raise UserError(
            "early_stopping wants trials that train in their own process: "
            + (
                f"leave it out, for trials here also run {', '.join(others)}."
                if others
                else "set cluster.train_workers = 1, or leave it out."
            )
        )
    return False
