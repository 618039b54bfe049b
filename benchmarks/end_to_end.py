"""Accuracy on one data set and protocol: every model of a config, mean over seeds and folds.

Each is a run of its own below the config's `out`. `--save` adds the figures to
docs/results_end_to_end.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.results import keep, line
from raysys.errors import UserError
from raysys.observe import configure_logging
from raysys.pipeline import run_stages
from raysys.settings import load_settings
from raysys.stages.context import RunSettings
from raysys.stages.evaluate import METRICS_FILE
from raysys.store import read_json

FOLDER, PAGE = Path("docs/results/end_to_end"), Path("docs/results_end_to_end.md")
STAGES = ("data", "embeddings", "train", "refit", "evaluate")
SHOWN = ("precision@10", "recall@10", "ndcg@10", "map@10", "mrr@10", "coverage@10", "novelty@10")
FIRST_SEED = 2023
#: What tells which part of a pipeline brought how much.
_COMPARED = "ndcg@10"
_INTRODUCTION = """# End-to-End Personalization, measured

Written by `python -m benchmarks.end_to_end … --save`, never by hand; the commands stand below each
table. All items are ranked, what a user rated in train is left out, ratings of 4 and 5 of the test
fold are relevant, users without a hit count as 0. Everything is chosen on validation (a tenth of
each user's train ratings); then models are trained on train and validation. ± is the standard
deviation over runs: seeds 2023, 2024, … and folds.

On fold u1 (456 users) the paper's own lists give: LightGCN .2583/.1530/.3046 (precision, recall,
NDCG), ALS .2447/.1629/.2809, GAT without text .2754/.1489/.3026, GAT with profiles .361/.217/.424;
`raysys evaluate LISTS.parquet --dataset DIR --fold u1_test --relevance 4 --k 10` measures them.
"""
_PARTS = """
Which part brought how much: paired differences over the same users, mean over runs; clearly: runs
whose 95 % bootstrap interval leaves out 0.
"""


def measure(
    config: Path, seed: int, fold: str, further: list[str], models: list[str]
) -> dict[str, Any]:
    """Run one seed on one fold; `models`: each model's metrics, `comparisons`: of text and parts.

    Args:
        models: only these of the config's; none: all.
    """
    base = load_settings(RunSettings, config, further)
    overrides = [*further, f"out={base.out / fold / str(seed)}", f"train.seed={seed}"]
    overrides.append(f'data.split.column="{fold}"')
    settings = load_settings(RunSettings, config, overrides)
    if models:
        if missing := [name for name in models if name not in settings.models]:
            raise UserError(f"{config} has no model {', '.join(missing)}.")
        few = {name: settings.models[name] for name in models}
        settings = settings.model_copy(update={"models": few})
    run_stages(settings, STAGES)
    found: dict[str, Any] = read_json(settings.out / "evaluate" / METRICS_FILE)
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation of every model and metric, and what parts brought: `over`."""
    rows: dict[str, dict[str, Any]] = {}
    for name in runs[0]["models"]:
        figures = {key: [run["models"][name][key] for run in runs] for key in SHOWN}
        rows[name] = {
            key: {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else 0.0}
            for key, values in figures.items()
        } | {"runs": len(runs)}
    for pairs in zip(*(run["comparisons"] for run in runs), strict=True):
        if pairs[0]["metric"] == _COMPARED:
            rows[pairs[0]["model"]].setdefault("over", {})[pairs[0]["baseline"]] = {
                "difference": fmean(pair["difference"] for pair in pairs),
                "better": sum(pair["low"] > 0 for pair in pairs),
                "worse": sum(pair["high"] < 0 for pair in pairs),
            }
    return rows


def page() -> str:
    """All that is kept, as markdown."""
    parts = [_INTRODUCTION]
    for path in sorted(FOLDER.glob("*.json")):
        rows = read_json(path)
        parts += [f"## {path.stem}\n", line(["model", *SHOWN, "runs"])]
        parts.append(line(["---"] * (len(SHOWN) + 2)))
        for name, row in sorted(rows.items(), key=lambda entry: entry[1]["ndcg@10"]["mean"]):
            cells = [f"{row[key]['mean']:.4f} ± {row[key]['sd']:.4f}" for key in SHOWN]
            parts.append(line([name, *cells, str(row["runs"])]))
        if any("over" in row for row in rows.values()):
            parts += [_PARTS, *_brought(rows)]
        commands = dict.fromkeys(row["command"] for row in rows.values())
        parts += ["", *[f"    {command}" for command in commands], ""]
    return "\n".join(parts)


def _brought(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A table of what each model with text, and each blend, has over its rivals and parts."""
    lines = [line(["model", "over", f"{_COMPARED} more", "clearly better", "clearly worse"])]
    lines.append(line(["---"] * 5))
    for name, row in rows.items():
        for baseline, found in row.get("over", {}).items():
            runs = [f"{found[key]} of {row['runs']}" for key in ("better", "worse")]
            lines.append(line([name, baseline, f"{found['difference']:+.4f}", *runs]))
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/end_to_end.toml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", help="only these of the config: ease,gat,…")
    parser.add_argument("--folds", default="u1_test", help="test columns: u1_test,u2_test,…")
    parser.add_argument("--name", default="ml-100k-u1", help="of the data set in the table")
    parser.add_argument("--save", action="store_true", help=f"add the figures to {PAGE}")
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_args()
    configure_logging()
    try:
        runs = [
            measure(
                arguments.config,
                FIRST_SEED + place,
                fold,
                arguments.overrides,
                arguments.models.split(",") if arguments.models else [],
            )
            for fold in arguments.folds.split(",")
            for place in range(arguments.seeds)
        ]
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    rows = summary(runs)
    if arguments.save:
        command = f"python -m benchmarks.end_to_end {' '.join(sys.argv[1:])}"
        keep(FOLDER / f"{arguments.name}.json", command, rows)
        PAGE.write_text(page(), encoding="utf-8")
    print(json.dumps({"benchmark": "end_to_end", "dataset": arguments.name, "figures": rows}))


if __name__ == "__main__":
    main()
