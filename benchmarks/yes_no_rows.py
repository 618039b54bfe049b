"""Accuracy of the yes/no recommender by row: which summaries, how many recent items.

A row is a run of its own below the config's `out`, and all share the cache of replies, so that a
summary is written once. `--save` adds the figures to docs/results_yes_no.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import keep, line
from raysys.errors import UserError
from raysys.observe import configure_logging
from raysys.pipeline import YES_NO, run_stages
from raysys.settings import load_settings
from raysys.stages.context import RunSettings
from raysys.stages.yes_no import EVALUATION, METRICS_FILE, TUNED
from raysys.store import read_json

FOLDER, PAGE = Path("docs/results/yes_no"), Path("docs/results_yes_no.md")
ROWS = {
    "none": ["yes_no.summaries=false"],
    "recurrent": ["yes_no.summaries=true", 'summaries.method="recurrent"'],
    "hierarchical": ["yes_no.summaries=true", 'summaries.method="hierarchical"'],
}
SHOWN = ("recall@3", "recall@5", "recall@10", "mrr@10", "ndcg@10")
_INTRODUCTION = """# The yes/no recommender, measured

Written by `python -m benchmarks.yes_no_rows … --save`, never by hand; the commands stand below each
table. One target among 20 sampled items, ties by expected rank; in brackets the 95 % interval by
bootstrap over test questions. A row `none`, `recurrent` or `hierarchical` is the fine-tuned model
with these summaries, `+N` with N recent items; `zero_shot` after it is the same prompt without
fine-tuning.
"""


def overrides(row: str) -> list[str]:
    """The settings of a row: `none`, `recurrent` or `hierarchical`, with `+N` for N recent items.

    Raises:
        UserError: no such row.
    """
    name, _, recent = row.partition("+")
    if name not in ROWS or not re.fullmatch(r"\d*", recent):
        raise UserError(f"no row '{row}': give {', '.join(ROWS)}, with +N for N recent items.")
    return [*ROWS[name], *([f"yes_no.recent_items={recent}"] if recent else [])]


def measure(config: Path, row: str, further: list[str]) -> dict[str, Any]:
    """Run a row; its metrics file."""
    base = load_settings(RunSettings, config, further)
    out = base.out / row
    settings = load_settings(RunSettings, config, [*further, *overrides(row), f"out={out}"])
    before = ("data", "summaries") if settings.yes_no.summaries else ("data",)
    run_stages(settings, (*before, *YES_NO))
    found: dict[str, Any] = read_json(out / EVALUATION / METRICS_FILE)
    return found


def named(row: str, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of one metrics file under the names of the table."""
    questions = {"questions": found["questions"]}
    names = {TUNED: row, "zero_shot": f"{row} zero_shot"}
    return {
        names.get(name, name): {**values, **questions} for name, values in found["rows"].items()
    }


def record(dataset: str, command: str, rows: dict[str, dict[str, Any]]) -> None:
    """Add rows to what is kept of a data set, and show all."""
    keep(FOLDER / f"{dataset}.json", command, rows)
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """All that is kept, as markdown."""
    parts = [_INTRODUCTION]
    for path in sorted(FOLDER.glob("*.json")):
        rows = read_json(path)
        parts += [f"## {path.stem}\n", line(["row", *SHOWN, "questions"]), line(["---"] * 7)]
        for name, row in sorted(rows.items(), key=lambda entry: entry[1]["mrr@10"]["mean"]):
            cells = [
                f"{row[key]['mean']:.3f} [{row[key]['low']:.3f}, {row[key]['high']:.3f}]"
                for key in SHOWN
            ]
            parts.append(line([name, *cells, str(row["questions"])]))
        commands = dict.fromkeys(row["command"] for row in rows.values())
        parts += ["", *[f"    {command}" for command in commands], ""]
    return "\n".join(parts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/yes_no_cpu.toml"))
    parser.add_argument("--rows", default="none,recurrent,hierarchical", help="see docs/yes_no.md")
    parser.add_argument("--name", help="of the data set in the table; default: its folder's")
    parser.add_argument("--save", action="store_true", help=f"add the figures to {PAGE}")
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_args()
    configure_logging()
    command = f"python -m benchmarks.yes_no_rows {' '.join(sys.argv[1:])}"
    figures: dict[str, dict[str, Any]] = {}
    try:
        source = load_settings(RunSettings, arguments.config, arguments.overrides).data.interactions
        name = arguments.name or (source.resolve().parent.name if source else "data")
        for row in arguments.rows.split(","):
            found = named(row, measure(arguments.config, row, arguments.overrides))
            figures |= found
            if arguments.save:
                record(name, command, found)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps({"benchmark": "yes_no_rows", "dataset": name, "figures": figures}))


if __name__ == "__main__":
    main()
