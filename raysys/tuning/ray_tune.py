"""Ray Tune over the trials of a sweep: which runs next, which is stopped, and what each came to."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from raysys.cluster import SMALL_CPUS
from raysys.observe import Tracker, get_logger, progress
from raysys.store import read_json, write_json
from raysys.tuning.settings import TuneSettings
from raysys.tuning.space import Values, from_tune, listed, to_tune, tune_space
from raysys.tuning.trial import (
    FINAL,
    MISTAKE_FILE,
    RESULT_FILE,
    VALIDATIONS,
    VALUE,
    Plan,
    Trial,
    run_trial,
)

#: Validations that no trial reaches: ASHA stops there.
_NEVER = 1_000_000
logger = get_logger(__name__)


def run_trials(plan: Plan, at_a_time: int, folder: Path) -> list[Trial]:
    """Run all trials of a plan; those that have finished before only tell what they told.

    Args:
        folder: for Ray Tune's own files, gone afterwards. They are pickles, and never read.
    """
    # It would write each report to three files, and print tables over our progress.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    settings = plan.settings
    trials = [] if settings.search == "optuna" else listed(settings)
    total = len(trials) or settings.trials or 0
    at_a_time = min(at_a_time, total)
    logger.info("sweep: %d trials, %d at a time, by %s", total, at_a_time, settings.objective)
    shutil.rmtree(folder, ignore_errors=True)
    with progress("trials", total) as tracker:
        keeper = _keeper(plan, trials, tracker)
        tune.Tuner(
            tune.with_resources(partial(_trial, plan=plan, trials=trials), {"CPU": SMALL_CPUS}),
            param_space={"trial": tune.grid_search(list(range(total)))} if trials else None,
            tune_config=tune.TuneConfig(
                metric=VALUE,
                mode="min" if settings.smaller_is_better else "max",
                num_samples=1 if trials else total,
                max_concurrent_trials=at_a_time,
                search_alg=None if trials else _optuna(plan),
                scheduler=_scheduler(settings),
                # A process for each trial takes seconds to start. One whose trial was stopped still
                # waits for the trial's run, which ends with it.
                reuse_actors=settings.early_stopping is None,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(folder), verbose=0, callbacks=[keeper]
            ),
        ).fit()
    shutil.rmtree(folder, ignore_errors=True)
    if len(keeper.found) != total:
        raise RuntimeError(f"{len(keeper.found)} of {total} trials came back")
    return list(keeper.found)


def _trial(config: dict[str, Any], plan: Plan, trials: list[Values]) -> None:
    run_trial(config, plan, _values(config, plan, trials))


def _values(config: dict[str, Any], plan: Plan, trials: list[Values]) -> Values:
    """A listed trial has a number, one of a searcher its point of the space."""
    return trials[config["trial"]] if trials else from_tune(plan.settings, config)


def _keeper(plan: Plan, trials: list[Values], tracker: Tracker) -> Any:
    """What writes down how each trial ended, as soon as it has; the list is its `found`."""
    from ray import tune

    class Keeper(tune.Callback):
        def __init__(self) -> None:
            self.found: list[Trial] = []
            self._reports: dict[str, list[dict[str, Any]]] = {}

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            report = {key: result[key] for key in (VALUE, VALIDATIONS, FINAL) if key in result}
            self._reports.setdefault(trial.trial_id, []).append(report)

        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **_: Any
        ) -> None:
            values = _values_of(trial)
            kept = plan.kept(values)
            if kept is None:
                kept = {
                    "mark": plan.mark,
                    "values": values,
                    "reports": self._reports[trial.trial_id],
                    "seconds": round(trial.last_result["time_total_s"], 3),
                }
                write_json(plan.folder(values) / RESULT_FILE, kept)
            last = kept["reports"][-1]
            self._add(Trial(values, last[VALUE], FINAL not in last, None, kept["seconds"]))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            values = _values_of(trial)
            mistake = plan.folder(values) / MISTAKE_FILE
            problem = read_json(mistake)["mistake"] if mistake.is_file() else str(trial.get_error())
            logger.warning("trial %s failed: %s", values, problem)
            self._add(Trial(values, None, problem=problem))

        def _add(self, trial: Trial) -> None:
            self.found.append(trial)
            figures = [one.value for one in self.found if one.value is not None]
            best = (min if plan.settings.smaller_is_better else max)(figures, default=None)
            tracker.update(len(self.found), "" if best is None else f"best {best:.4f}")

    def _values_of(trial: Any) -> Values:
        return _values(trial.config, plan, trials)

    return Keeper()


def _scheduler(settings: TuneSettings) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    if settings.early_stopping is None:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return AsyncHyperBandScheduler(
        time_attr=VALIDATIONS,
        max_t=_NEVER,
        grace_period=settings.early_stopping.grace,
        reduction_factor=settings.early_stopping.reduction,
    )


def _optuna(plan: Plan) -> Any:
    """The searcher; what finished before is what it proposes first."""
    from ray.tune.search.optuna import OptunaSearch

    settings = plan.settings
    finished = [read_json(path) for path in sorted(plan.trials.glob(f"*/{RESULT_FILE}"))]
    points = [
        point
        for found in finished
        if found["mark"] == plan.mark and (point := to_tune(settings, found["values"])) is not None
    ]
    logging.getLogger("optuna").setLevel(logging.ERROR)
    return OptunaSearch(
        tune_space(settings),
        metric=VALUE,
        mode="min" if settings.smaller_is_better else "max",
        points_to_evaluate=points[: settings.trials] or None,
        seed=settings.seed,
    )
