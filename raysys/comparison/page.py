"""What a comparison leaves: its figures as JSON, and a page with the table and two pictures."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

from raysys.comparison.table import METRICS, measure
from raysys.comparison.work import Finished
from raysys.pages import write_page
from raysys.store import replace_file, write_json

RESULTS_FILE, PAGE_FILE, TABLE_FILE = "compare.json", "compare.html", "compare.md"
HEAD = (
    "row", "NDCG", "minus baseline", "Recall", "coverage", "diversity", "seconds", "GiB",
    "tokens/1000 users", "money/1000 users",
)  # fmt: skip
#: Columns that a terminal has no room for.
_ON_PAGE = ("Recall", "coverage", "diversity")


def write_comparison(finished: Finished) -> dict[str, Any]:
    """Measure the rows, write them as JSON, page and table; returns what is in the JSON."""
    found = measure(finished)
    out = finished.settings.out.resolve()
    _write_page(out / PAGE_FILE, finished, found)
    table = _markdown(found)
    replace_file(out / TABLE_FILE, lambda path: path.write_text(table, encoding="utf-8"))
    # Last: it says that the rest is there.
    write_json(out / RESULTS_FILE, found)
    return found


def shown(found: dict[str, Any], without: Collection[str] = _ON_PAGE) -> list[list[str]]:
    """The table: its head, then its rows; columns that say nothing are left out.

    Args:
        without: columns that do not fit; those that a terminal has no room for.
    """
    rows = [list(HEAD), *(_cells(name, row) for name, row in found["rows"].items())]
    filled = [any(cells[place] for cells in rows[1:]) for place in range(len(HEAD))]
    kept = [place for place, name in enumerate(HEAD) if filled[place] and name not in without]
    return [[cells[place] for place in kept] for cells in rows]


def _markdown(found: dict[str, Any]) -> str:
    """The table for a README."""
    head, *rows = shown(found, without=())
    lines = [head, ["---"] * len(head), *rows]
    about = f"{found['users']} users, @{found['k']}; 95 % intervals; baseline {found['baseline']}"
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", about, ""])


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table, in the order of `HEAD`."""
    minus = row["minus"]
    difference = "" if minus is None else _with_interval(minus["ndcg"], "+")
    beyond, memory = row["beyond"], row["peak_gib"]
    return [
        f"{name} (LEAKY)" if row["leaks"] else name,
        _with_interval(row["metrics"]["ndcg"]),
        difference,
        _with_interval(row["metrics"]["recall"]),
        f"{beyond['coverage']:.3f}",
        f"{beyond['diversity']:.3f}" if "diversity" in beyond else "",
        f"{row['seconds']:.1f}",
        "" if memory is None else f"{memory:.1f}",
        f"{row['tokens_per_1000_users']:,}" if row["tokens_per_1000_users"] else "",
        f"{row['money_per_1000_users']:.2f}" if row["money_per_1000_users"] else "",
    ]


def _with_interval(figure: dict[str, float], sign: str = "") -> str:
    low, high = figure["low"], figure["high"]
    return f"{figure['mean']:{sign}.4f} [{low:.3f}, {high:.3f}]"


def _write_page(path: Path, finished: Finished, found: dict[str, Any]) -> None:
    rows = found["rows"]
    head, *cells = shown(found, without=())
    metrics = [
        [name, *(f"{row['metrics'][metric]['mean']:.4f}" for metric in METRICS)]
        for name, row in rows.items()
    ]
    slices = [
        [name, *(_slice(row, part) for part in found["slices"])] for name, row in rows.items()
    ]
    write_page(
        path,
        "raysys.comparison",
        "compare.html",
        run=finished.settings.run,
        found=found,
        head=head,
        rows=cells,
        metric_head=["row", *(f"{metric}@{found['k']}" for metric in METRICS)],
        metrics=metrics,
        slice_head=["row", *(f"{part} ({count} users)" for part, count in found["slices"].items())],
        slices=slices,
        plot=_draw(found),
    )


def _slice(row: dict[str, Any], part: str) -> str:
    figures = row["slices"].get(part)
    return "" if figures is None else f"{figures['ndcg']:.4f}"


def _draw(found: dict[str, Any]) -> bytes:
    """Accuracy against time and against coverage, a dot a row; PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    time, breadth = figure.subplots(1, 2, sharey=True)
    for name, row in found["rows"].items():
        accuracy = row["metrics"]["ndcg"]
        below, above = accuracy["mean"] - accuracy["low"], accuracy["high"] - accuracy["mean"]
        mark = "x" if row["leaks"] else "o"
        # Half a second stands for nothing at all: the axis is logarithmic.
        for axis, x in (
            (time, max(row["seconds"], 0.5)),
            (breadth, row["beyond"]["coverage"]),
        ):
            axis.errorbar(x, accuracy["mean"], [[below], [above]], fmt=mark, ms=6, capsize=2)
            axis.annotate(
                name, (x, accuracy["mean"]), xytext=(6, 4), textcoords="offset points", fontsize=8
            )
    time.set(xscale="log", xlabel="seconds of its own stages", ylabel=f"NDCG@{found['k']}")
    breadth.set(xlabel=f"coverage@{found['k']}: share of the catalogue in some list")
    for axis in (time, breadth):
        axis.grid(alpha=0.25)
        axis.margins(x=0.18)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=110, format="png")
    return buffer.getvalue()
