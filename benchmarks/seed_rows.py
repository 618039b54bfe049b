"""A table of runs: some settings a row, mean and standard deviation over seeds, kept and shown.

A row is a run of its own below the config's `out`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.results import keep, line
from raysys.errors import UserError
from raysys.observe import configure_logging
from raysys.settings import load_settings, nearest
from raysys.stages.context import RunSettings
from raysys.store import read_json

FIRST_SEED = 2023
#: Figures of one run: row of the table → metric → value, with `users`.
Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """What is measured.

    Attributes:
        benchmark: name of the module that measures it.
        config: the settings of the first row.
        folder: of what is kept, a file for each data set; `page` shows it.
        introduction: stands before the tables.
        rows: name → settings that differ.
        seeded: settings that are the seed.
        shown: metrics in the table.
        ordered_by: the metric that rows are in order of.
        measure: runs settings; given the row's name too.
        same_run: rows that go on from another row's run.
        default: rows that are run where none are named.
    """

    benchmark: str
    config: Path
    folder: Path
    page: Path
    introduction: str
    rows: Mapping[str, list[str]]
    seeded: tuple[str, ...]
    shown: tuple[str, ...]
    ordered_by: str
    measure: Callable[[RunSettings, str], Figures]
    same_run: Mapping[str, str] = field(default_factory=dict)
    default: str = ""

    def run(self, config: Path, row: str, seed: int, further: list[str]) -> Figures:
        """The figures of one run."""
        base = load_settings(RunSettings, config, further)
        name = self.same_run.get(row, row).replace(", ", "_").replace(" ", "_")
        seeds = [f"{key}={seed}" for key in self.seeded]
        words = [*further, *self.rows[row], f"out={base.out / name / str(seed)}", *seeds]
        return self.measure(load_settings(RunSettings, config, words), row)

    def summary(self, runs: list[Figures]) -> Figures:
        """Mean and standard deviation of each metric."""
        found: Figures = {}
        for name, values in runs[0].items():
            figures = {key: [run[name][key] for run in runs] for key in self.shown}
            found[name] = {
                "runs": len(runs),
                "users": values["users"],
                **{
                    key: {"mean": fmean(one), "sd": stdev(one) if len(one) > 1 else 0.0}
                    for key, one in figures.items()
                },
            }
        return found

    def shown_page(self) -> str:
        """All that is kept, as markdown."""
        parts = [self.introduction]
        for path in sorted(self.folder.glob("*.json")):
            rows = read_json(path)
            parts += [f"## {path.stem}\n", line(["row", *self.shown, "users", "seeds"])]
            parts.append(line(["---"] * (len(self.shown) + 3)))
            order = [
                (*name.rpartition(": ")[:1], row[self.ordered_by]["mean"], name)
                for name, row in rows.items()
            ]
            for _, _, name in sorted(order):
                row = rows[name]
                cells = [f"{row[key]['mean']:.4f} ± {row[key]['sd']:.4f}" for key in self.shown]
                parts.append(line([name, *cells, str(row["users"]), str(row["runs"])]))
            commands = dict.fromkeys(row["command"] for row in rows.values())
            parts += ["", *[f"    {command}" for command in commands], ""]
        return "\n".join(parts)

    def main(self, description: str) -> None:
        """Measure and print."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--config", type=Path, default=self.config)
        parser.add_argument("--rows", default=self.default, help=f"of: {'; '.join(self.rows)}")
        parser.add_argument("--seeds", type=int, default=3)
        parser.add_argument("--name", help="of the data set in the table; default: its folder's")
        parser.add_argument("--save", action="store_true", help=f"add the figures to {self.page}")
        parser.add_argument("overrides", nargs="*", help="key=value")
        arguments = parser.parse_args()
        configure_logging()
        command = f"python -m benchmarks.{self.benchmark} {shlex.join(sys.argv[1:])}"
        figures: Figures = {}
        try:
            data = load_settings(RunSettings, arguments.config, arguments.overrides).data
            source = data.interactions
            name = arguments.name or (source.resolve().parent.name if source else "data")
            for row in map(str.strip, arguments.rows.split(";")):
                if row not in self.rows:
                    raise UserError(f"no row '{row}': {nearest(row, list(self.rows))}")
                runs = [
                    self.run(arguments.config, row, FIRST_SEED + place, arguments.overrides)
                    for place in range(arguments.seeds)
                ]
                found = self.summary(runs)
                figures |= found
                if arguments.save:
                    keep(self.folder / f"{name}.json", command, found)
                    self.page.write_text(self.shown_page(), encoding="utf-8")
        except UserError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        print(json.dumps({"benchmark": self.benchmark, "dataset": name, "figures": figures}))
