"""What a sweep leaves: a table, the best config, pictures, and, where wanted, MLflow's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomli_w

from raysys.errors import UserError
from raysys.pages import write_page
from raysys.settings import set_key
from raysys.store import replace_file, write_json
from raysys.tuning.plots import draw_sensitivity
from raysys.tuning.space import trial_config
from raysys.tuning.sweep import Sweep
from raysys.tuning.trial import Trial

RESULTS_FILE, BEST_FILE, PLOT_FILE, PAGE_FILE = (
    "results.json",
    "best.toml",
    "sensitivity.png",
    "sweep.html",
)


def write_outcome(sweep: Sweep) -> dict[str, Any]:
    """Write all files of a finished sweep into its folder; returns what is in `results.json`.

    `best.toml` is the run's config with the best trial's values and folder: `raysys run` goes on
    from what that trial has finished.

    Raises:
        UserError: `mlflow` is set and MLflow is not installed.
    """
    out = sweep.settings.out.resolve()
    best = trial_config(sweep.base, sweep.best.values)
    set_key(best, "out", str(sweep.folder(sweep.best)))
    text = tomli_w.dumps(best)
    replace_file(out / BEST_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    draw_sensitivity(sweep, out / PLOT_FILE)
    results = {
        "objective": sweep.settings.objective,
        "best": {"values": sweep.best.values, "value": sweep.best.value, "trial": sweep.best.name},
        "trials": [_row(trial) for trial in sweep.trials],
        "counts": {
            "in": len(sweep.trials),
            "ok": sum(trial.problem is None for trial in sweep.trials),
            "dead_letter": sum(trial.problem is not None for trial in sweep.trials),
            "stopped_early": sum(trial.stopped for trial in sweep.trials),
        },
        "seconds": round(sweep.seconds, 1),
    }
    keys = list(sweep.settings.space)
    write_page(
        out / PAGE_FILE,
        "raysys.tuning",
        "sweep.html",
        objective=sweep.settings.objective,
        run=sweep.settings.run,
        head=[*keys, sweep.settings.figure, "seconds", ""],
        rows=[shown(trial, keys) for trial in sweep.trials],
        best=BEST_FILE,
        plot=(out / PLOT_FILE).read_bytes(),
    )
    if sweep.settings.mlflow is not None:
        _log(sweep, sweep.settings.mlflow.resolve())
    # Last: it says that the rest is there.
    write_json(out / RESULTS_FILE, results)
    return results


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "values": trial.values,
        "value": trial.value,
        "stopped_early": trial.stopped,
        "problem": trial.problem,
        "seconds": trial.seconds,
    }


def shown(trial: Trial, keys: list[str]) -> list[str]:
    """A trial's row of the table: its values, the objective, how it ended, and how long it took."""
    cells = [_cell(trial.values[key]) for key in keys]
    ended = trial.problem or ("stopped early" if trial.stopped else "")
    value = "" if trial.value is None else f"{trial.value:.4f}"
    return [*cells, value, f"{trial.seconds:.1f}", ended]


def _cell(value: Any) -> str:
    """A number short, anything else as JSON."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _log(sweep: Sweep, path: Path) -> None:
    """One MLflow run for each trial; a sweep that is logged again has a new experiment run."""
    try:
        import mlflow
    except ImportError:
        raise UserError(
            "mlflow is set, but MLflow is not installed: pip install --no-deps mlflow-skinny."
        ) from None
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.set_experiment(sweep.settings.out.name)
    for trial in sweep.trials:
        with mlflow.start_run(run_name=trial.name):
            mlflow.log_params({key: _cell(value) for key, value in trial.values.items()})
            mlflow.set_tag("ended", trial.problem or ("stopped" if trial.stopped else "finished"))
            if trial.value is not None:
                mlflow.log_metric(sweep.settings.figure.replace("@", "_at_"), trial.value)
