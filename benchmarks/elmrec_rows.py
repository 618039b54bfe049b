"""ELMRec's accuracy by row: which whole-word embeddings each task reads; mean over seeds.

A row is a run of its own below the config's `out`. `--save` adds the figures to
docs/results_elmrec.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.results import keep, line
from raysys.errors import UserError
from raysys.observe import configure_logging
from raysys.pipeline import ELMREC, run_stages
from raysys.settings import load_settings, nearest
from raysys.stages.context import RunSettings
from raysys.stages.elmrec import EVALUATION, METRICS_FILE
from raysys.store import read_json

FOLDER, PAGE = Path("docs/results/elmrec"), Path("docs/results_elmrec.md")
_KIND = "elmrec.words.{}.whole_words={}"
ROWS = {
    "elmrec": [],
    "no graph": [_KIND.format("direct", "none")],
    "random": [_KIND.format("sequential", "random")],
    "no graph, random": [_KIND.format("direct", "none"), _KIND.format("sequential", "random")],
    "prepended": ["elmrec.words.attach=prepend"],
    "LEAKY": ["elmrec.graph=explanation_split", "elmrec.hide=none"],
}
FIRST_SEED = 2023
SHOWN = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")
_INTRODUCTION = """# ELMRec, measured

Written by `python -m benchmarks.elmrec_rows … --save`, never by hand; the commands stand below each
table. Leave-last-two-out; direct: the test item among 99 sampled ones, the same in every run;
sequential: the whole catalogue, less what the user has. The graph holds train edges alone, and what
a batch teaches is hidden from it. ± is the standard deviation over seeds 2023, 2024, … Rows:
`elmrec` reads the graph in the direct and the order of appearance in the sequential task,
`no graph` leaves the graph out, `random` counts words in a random order, `LEAKY` is the graph of
the released code, which holds most of the edges that are asked for. `ease` in the sequential task
weighs an item of age n by exp(-n/2).
"""


def measure(config: Path, row: str, seed: int, further: list[str]) -> dict[str, Any]:
    """The metrics of one run, by task and row."""
    base = load_settings(RunSettings, config, further)
    out = base.out / row.replace(", ", "_").replace(" ", "_") / str(seed)
    words = [*further, *ROWS[row], f"out={out}", f"elmrec.train.seed={seed}"]
    settings = load_settings(RunSettings, config, words)
    run_stages(settings, ("data", *ELMREC))
    tasks = read_json(out / EVALUATION / METRICS_FILE)["tasks"]
    found: dict[str, Any] = {}
    for task, values in tasks.items():
        for name, figures in values["rows"].items():
            label = row if name.startswith("elmrec") else name
            found.setdefault(task, {})[label] = {key: figures[key]["mean"] for key in SHOWN}
            found[task][label]["users"] = values["users"]
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`task: row` → mean and standard deviation of each metric."""
    found = {}
    for task, rows in runs[0].items():
        for name, values in rows.items():
            figures = {key: [run[task][name][key] for run in runs] for key in SHOWN}
            found[f"{task}: {name}"] = {
                "runs": len(runs),
                "users": values["users"],
                **{
                    key: {"mean": fmean(one), "sd": stdev(one) if len(one) > 1 else 0.0}
                    for key, one in figures.items()
                },
            }
    return found


def page() -> str:
    """All that is kept, as markdown."""
    parts = [_INTRODUCTION]
    for path in sorted(FOLDER.glob("*.json")):
        rows = read_json(path)
        parts += [f"## {path.stem}\n", line(["row", *SHOWN, "users", "seeds"])]
        parts.append(line(["---"] * (len(SHOWN) + 3)))
        order = [(name.split(":")[0], row["hr@10"]["mean"], name) for name, row in rows.items()]
        for _, _, name in sorted(order):
            row = rows[name]
            cells = [f"{row[key]['mean']:.4f} ± {row[key]['sd']:.4f}" for key in SHOWN]
            parts.append(line([name, *cells, str(row["users"]), str(row["runs"])]))
        commands = dict.fromkeys(row["command"] for row in rows.values())
        parts += ["", *[f"    {command}" for command in commands], ""]
    return "\n".join(parts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/elmrec_cpu.toml"))
    parser.add_argument("--rows", default="elmrec;no graph, random", help=f"of: {'; '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", help="of the data set in the table; default: its folder's")
    parser.add_argument("--save", action="store_true", help=f"add the figures to {PAGE}")
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_args()
    configure_logging()
    command = f"python -m benchmarks.elmrec_rows {shlex.join(sys.argv[1:])}"
    figures: dict[str, dict[str, Any]] = {}
    try:
        source = load_settings(RunSettings, arguments.config, arguments.overrides).data.interactions
        name = arguments.name or (source.resolve().parent.name if source else "data")
        for row in map(str.strip, arguments.rows.split(";")):
            if row not in ROWS:
                raise UserError(f"no row '{row}': {nearest(row, list(ROWS))}")
            runs = [
                measure(arguments.config, row, FIRST_SEED + place, arguments.overrides)
                for place in range(arguments.seeds)
            ]
            found = summary(runs)
            figures |= found
            if arguments.save:
                keep(FOLDER / f"{name}.json", command, found)
                PAGE.write_text(page(), encoding="utf-8")
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps({"benchmark": "elmrec_rows", "dataset": name, "figures": figures}))


if __name__ == "__main__":
    main()
