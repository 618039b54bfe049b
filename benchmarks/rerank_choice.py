"""What validation made of reranking in a finished run: each weight and segment that it tried.

`python -m benchmarks.rerank_choice RUN --save` shows it in docs/rerank.md; RUN is of
`raysys rerank CONFIG` with `rerank.choose`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown, save, this_command
from raysys.stages.rerank import CHOICE_FILE
from raysys.store import read_json


def table_of(choice: dict[str, Any]) -> str:
    """A row for each weight of the language model, a column for each segment; bold: chosen."""
    tried = choice["tried"]
    metric = next(key for key in tried[0] if "@" in key)
    segments = list(dict.fromkeys(row["below"] for row in tried if row["weight"]))
    found = {(row["weight"], row["below"]): row[metric] for row in tried}
    graph, chosen = found[0.0, None], (choice["weight"], choice["below"])
    head = ["weight", *("all users" if one is None else f"below {one} likes" for one in segments)]
    rows = [["0", *([_shown(graph, chosen == (0.0, None))] * len(segments))]]
    for weight in sorted({row["weight"] for row in tried} - {0.0}):
        cells = [_shown(found[weight, one], chosen == (weight, one)) for one in segments]
        rows.append([f"{weight:g}", *cells])
    return f"{markdown(head, rows)}\n{metric} on validation; bold: chosen; weight 0: not reranked\n"


def _shown(figure: float, chosen: bool) -> str:
    return f"**{figure:.4f}**" if chosen else f"{figure:.4f}"


def main() -> None:
    """Print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--save", action="store_true", help="show the table in docs/rerank.md")
    arguments = parser.parse_args()
    choice = read_json(arguments.run / "rerank" / CHOICE_FILE)
    table = table_of(choice)
    if arguments.save:
        save("rerank_choice", table, this_command("rerank_choice"))
    figures = {"weight": choice["weight"], "below": choice["below"], "tried": len(choice["tried"])}
    print(table)
    print(json.dumps({"benchmark": "rerank_choice", "figures": figures}))


if __name__ == "__main__":
    main()
