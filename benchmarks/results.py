"""What `benchmarks.reproduce --save` has measured, kept as JSON and shown in docs/results.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysys.store import read_json, write_json

FOLDER = Path("docs/results/reproduce")
PAGE = Path("docs/results.md")
RECALL, NDCG = "recall@20", "ndcg@20"
#: RLMRec, Table 1: Recall@20 and NDCG@20 of its base rows.
PUBLISHED = {
    "rlmrec-amazon-book": {
        "lightgcn": (0.1411, 0.0856),
        "gccf": (0.1343, 0.0807),
        "sgl": (0.1473, 0.0913),
        "simgcl": (0.1512, 0.0919),
        "dccf": (0.1517, 0.0943),
        "autocf": (0.1536, 0.0984),
    }
}
_INTRODUCTION = """# Results

Written by `python -m benchmarks.reproduce … --save`, never by hand; the commands stand below each
table. (Rows whose command lacks `--save` are older than that option: what the command printed last
was taken over by a script.) All items are ranked, train items are left out, every choice is made on
validation and test is looked at once (RLMRec, section 4.1.2). ± is the standard deviation over
seeds 2023, 2024, …, and what each of them chose on validation stands in their order.

Names: `_con` and `_gen` are RLMRec's alignments with its settings for Amazon-book; `_sampled` is
con with a batch, log-Q weighted, in place of all users as denominator; `_gen_sampled` is gen that
reconstructs 2,048 of the hidden nodes in each step, not all; `0` after them is the same run with
weight 0, the fair baseline; `_shuffled` is the control, whose texts are dealt out anew among the
items and among the users; `a+b` is a blend of two models' scores.

Texts are the items' columns (beauty: title, keywords; games: title; ml-1m: title, genres, plot) as
all-MiniLM-L6-v2 encodes them; a user's vector is the mean of the train items'. `python -m
benchmarks.text_vectors --dataset NAME --columns title,keywords --out FILE` makes the files that
`--vectors` reads.
"""


def record(dataset: str, command: str, figures: dict[str, dict[str, Any]]) -> None:
    """Add figures to what is kept of a data set, newer ones in place of older, and show all."""
    keep(FOLDER / f"{dataset}.json", command, figures)
    PAGE.write_text(page(), encoding="utf-8")


def keep(path: Path, command: str, rows: dict[str, dict[str, Any]]) -> None:
    """Add rows to a file of rows by name, newer ones in place of older."""
    kept = read_json(path) if path.is_file() else {}
    write_json(path, kept | {name: {**row, "command": command} for name, row in rows.items()})


def line(cells: list[str]) -> str:
    """A row of a markdown table."""
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """All that is kept, as markdown."""
    parts = [_INTRODUCTION]
    for path in sorted(FOLDER.glob("*.json")):
        rows = read_json(path)
        published = PUBLISHED.get(path.stem, {})
        header = ["model", "Recall@20", "NDCG@20", "seeds", "chosen on validation"]
        header += ["published", "share of it"] if published else []
        parts += [f"## {path.stem}\n", line(header), line(["---"] * len(header))]
        for model, row in sorted(rows.items(), key=lambda entry: entry[1][RECALL]):
            parts.append(line(_cells(model, row, published)))
        commands = dict.fromkeys(row["command"] for row in rows.values())
        parts += ["", *[f"    {command}" for command in commands], ""]
    return "\n".join(parts)


def _cells(model: str, row: dict[str, Any], published: dict[str, tuple[float, float]]) -> list[str]:
    figures = [
        f"{row[key]:.4f}" + (f" ± {row[f'{key}_sd']:.4f}" if f"{key}_sd" in row else "")
        for key in (RECALL, NDCG)
    ]
    cells = [model, *figures, str(row["seeds"]), row["chosen"]]
    if published:
        theirs = published.get(model)
        shares = [
            row[key] / value for key, value in zip((RECALL, NDCG), theirs or (), strict=False)
        ]
        cells.append("" if theirs is None else f"{theirs[0]:.4f} / {theirs[1]:.4f}")
        cells.append(" / ".join(f"{100 * share:.1f} %" for share in shares))
    return cells
