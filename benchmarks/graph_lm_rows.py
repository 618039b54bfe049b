"""Accuracy of the graph-attentive language model by row: what is left out; mean over seeds.

A row is a run of its own below the config's `out`. `--save` adds the figures to
docs/results_graph_lm.md.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.seed_rows import Figures, Table
from raysys.pipeline import run_stages
from raysys.stages.context import RunSettings
from raysys.stages.graph_lm import EVALUATION, GRAPH_LM, METRICS_FILE, stages_of
from raysys.store import read_json

_KIND = 'graph_lm.relations.kind="{}"'
_FAMILIES = "graph_lm.crowd_prompts.families={}"
SHOWN = ("recall@20", "recall@40", "capped_recall@20", "capped_recall@40", "ndcg@100")


def measure(settings: RunSettings, row: str) -> Figures:
    """The metrics of one run."""
    stages = [name for name in stages_of(settings.graph_lm) if name != "graph_lm_lists"]
    run_stages(settings, ("data", *stages))
    metrics = read_json(settings.out / EVALUATION / METRICS_FILE)
    found: Figures = {}
    for name, figures in metrics["rows"].items():
        label = row if name == GRAPH_LM else name
        found[label] = {key: figures[key]["mean"] for key in SHOWN}
        found[label]["users"] = metrics["users"]
    return found


TABLE = Table(
    benchmark="graph_lm_rows",
    config=Path("configs/graph_lm_cpu.toml"),
    folder=Path("docs/results/graph_lm"),
    page=Path("docs/results_graph_lm.md"),
    introduction="""# The graph-attentive language model, measured

Written by `python -m benchmarks.graph_lm_rows … --save`, never by hand; the commands stand below
each table. Beauty's 7-core, a small GPT-2 with random weights (`configs/graph_lm_cpu.toml`).
80/10/10 of each user's interactions at random; all items are ranked, train items are left out
(section 4.1). ± is the standard deviation over seeds 2023, 2024, … `capped_recall@k` divides by
min(k, number of right items), `recall@k` by that number. Rows: `full` has all three steps and R by
distance; `no R` and `ones` change R, in all steps; `no fine-tuning` stops before step 3 and `no
pre-training` is step 3 alone; `no graph prompts` and `no history prompts` leave prompts out of
step 1, the latter step 2 too.
""",
    rows={
        "full": [],
        "no R": [_KIND.format("none")],
        "ones": [_KIND.format("ones")],
        "ppr": [_KIND.format("ppr")],
        "cooccurrence": [_KIND.format("cooccurrence")],
        "no fine-tuning": ['graph_lm.steps=["crowd","interactions"]'],
        "no pre-training": ['graph_lm.steps=["predict"]'],
        "no graph prompts": [_FAMILIES.format('["attribute","review","event"]')],
        "no history prompts": [
            _FAMILIES.format('["attribute","review","shared"]'),
            'graph_lm.steps=["crowd","predict"]',
        ],
    },
    seeded=tuple(
        f"graph_lm.{key}" for key in ("seed", "crowd.seed", "interactions.seed", "predict.seed")
    ),
    shown=SHOWN,
    ordered_by="recall@20",
    measure=measure,
    same_run={"no fine-tuning": "full"},
    default="full;no R;no fine-tuning",
)

if __name__ == "__main__":
    TABLE.main(__doc__.splitlines()[0])
