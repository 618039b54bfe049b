"""ELMRec's accuracy by row: which whole-word embeddings each task reads; mean over seeds.

A row is a run of its own below the config's `out`. `--save` adds the figures to
docs/results_elmrec.md.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.seed_rows import Figures, Table
from raysys.pipeline import ELMREC, run_stages
from raysys.stages.context import RunSettings
from raysys.stages.elmrec import EVALUATION, METRICS_FILE
from raysys.store import read_json

_KIND = "elmrec.words.{}.whole_words={}"
_NO_GRAPH, _RANDOM = _KIND.format("direct", "none"), _KIND.format("sequential", "random")
SHOWN = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")


def measure(settings: RunSettings, row: str) -> Figures:
    """The metrics of one run, by task and row."""
    run_stages(settings, ("data", *ELMREC))
    found: Figures = {}
    tasks = read_json(settings.out / EVALUATION / METRICS_FILE)["tasks"]
    for task, values in tasks.items():
        for name, figures in values["rows"].items():
            label = f"{task}: {row if name.startswith('elmrec') else name}"
            found[label] = {key: figures[key]["mean"] for key in SHOWN}
            found[label]["users"] = values["users"]
    return found


TABLE = Table(
    benchmark="elmrec_rows",
    config=Path("configs/elmrec_cpu.toml"),
    folder=Path("docs/results/elmrec"),
    page=Path("docs/results_elmrec.md"),
    introduction="""# ELMRec, measured

Written by `python -m benchmarks.elmrec_rows … --save`, never by hand; the commands stand below each
table. Leave-last-two-out; direct: the test item among 99 sampled ones, the same in every run;
sequential: the whole catalogue, less what the user has. The graph holds train edges alone, and what
a batch teaches is hidden from it. ± is the standard deviation over seeds 2023, 2024, … Rows:
`elmrec` reads the graph in the direct and the order of appearance in the sequential task,
`no graph` leaves the graph out, `random` counts words in a random order, `LEAKY` is the graph of
the released code, which holds most of the edges that are asked for. `ease` in the sequential task
weighs an item of age n by exp(-n/2).
""",
    rows={
        "elmrec": [],
        "no graph": [_NO_GRAPH],
        "random": [_RANDOM],
        "no graph, random": [_NO_GRAPH, _RANDOM],
        "prepended": ["elmrec.words.attach=prepend"],
        "LEAKY": ["elmrec.graph=explanation_split", "elmrec.hide=none"],
    },
    seeded=("elmrec.train.seed",),
    shown=SHOWN,
    ordered_by="hr@10",
    measure=measure,
    default="elmrec;no graph, random",
)

if __name__ == "__main__":
    TABLE.main(__doc__.splitlines()[0])
