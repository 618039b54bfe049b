"""What commands say: as JSON, and as lines or a table for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raysys.store import read_json

if TYPE_CHECKING:
    # Importing it takes seconds, and torch.
    from raysys.pipeline import StageOutcome

#: Of every command that runs a config.
Config = Annotated[Path, typer.Argument(help="A .toml or .yaml file: see configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Single keys to change: train.epochs=5 …")
]
#: Of every command that has a result.
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def print_result(as_json: bool, value: dict[str, Any], lines: Sequence[str] | Table) -> None:
    """Print a result on standard output."""
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
    elif isinstance(lines, Table):
        Console().print(lines)
    else:
        for line in lines:
            typer.echo(line)


def told(out: Path, outcomes: Mapping[str, StageOutcome]) -> tuple[dict[str, Any], list[str]]:
    """The result of a run as JSON and as lines.

    Args:
        out: the run directory.
    """
    report = out / "report.json"
    value: dict[str, Any] = {
        "run": str(out),
        "stages": {
            name: {
                "skipped": outcome.skipped,
                "seconds": outcome.manifest.seconds,
                "counts": outcome.manifest.counts,
                "dropped": outcome.manifest.dropped,
            }
            for name, outcome in outcomes.items()
        },
    }
    lines = [
        f"{name}: {'finished before' if outcome.skipped else f'{outcome.manifest.seconds:.1f} s'}"
        f" → {out / name}"
        for name, outcome in outcomes.items()
    ]
    if "report" in outcomes:
        value["report"] = str(report)
        value["models"] = read_json(report)["models"]
        lines += ["", f"Report:    {out / 'report.html'}"]
        lines += [f"Lists:     {out / 'recommend' / 'recommendations.parquet'}"]
        lines += [f"Serve it:  raysys serve {out}"]
    if "rerank" in outcomes:
        lines += ["", *reranked(out / "rerank", value)]
    if "explain" in outcomes:
        lines += [f"Reasons:   {out / 'explain' / 'explanations.parquet'}"]
    if "yes_no_evaluation" in outcomes:
        metrics = out / "yes_no_evaluation" / "metrics.json"
        value["rows"] = read_json(metrics)["rows"]
        lines += ["", *map(metrics_line, value["rows"].items()), f"All of it: {metrics}"]
        lines += [f"As one plain model: raysys merge {out} --out FOLDER"]
    if "elmrec_evaluation" in outcomes:
        value["elmrec"] = read_json(out / "elmrec_evaluation" / "metrics.json")
        for task, found in value["elmrec"]["tasks"].items():
            asked = found.get("users", found.get("texts"))
            lines += ["", f"{task}, {asked} {'users' if 'users' in found else 'texts'}:"]
            lines += map(metrics_line, found["rows"].items())
        lines += [f"All of it: {out / 'elmrec_evaluation' / 'metrics.json'}"]
    if "graph_lm_evaluation" in outcomes:
        folder = out / "graph_lm_evaluation"
        value["graph_lm"] = read_json(folder / "metrics.json")
        lines += ["", f"{value['graph_lm']['users']} test users:"]
        lines += map(metrics_line, value["graph_lm"]["rows"].items())
        lines += [f"All of it: {folder / 'metrics.json'}, {folder / 'training.png'}"]
        lines += [f"Lists:     {out / 'graph_lm_lists' / 'recommendations.parquet'}"]
    return value, lines


def reranked(folder: Path, value: dict[str, Any]) -> list[str]:
    """What a reranking chose and, where it was measured, brought."""
    lines = []
    for name, key in (("choice.json", "choice"), ("metrics.json", "segments")):
        if (folder / name).is_file():
            found = read_json(folder / name)
            value.setdefault("rerank", {})[key] = found.get(key, found)
    if "choice" in value.get("rerank", {}):
        chosen = value["rerank"]["choice"]
        who = "all users" if chosen["below"] is None else f"users below {chosen['below']} likes"
        lines.append(
            f"chosen on validation: weight {chosen['weight']:g} for {who}"
            if chosen["weight"]
            else "chosen on validation: not to rerank"
        )
    for name, row in value.get("rerank", {}).get("segments", {}).items():
        gain = row["difference"]["ndcg"]
        lines.append(
            f"{name}, {row['users']} users: NDCG {row['graph']['ndcg']:.3f} by the graph, "
            f"{row['reranked']['ndcg']:.3f} reranked "
            f"({gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}])"
        )
    return [*lines, f"Lists:     {folder / 'recommendations.parquet'}"]


def metrics_line(row: tuple[str, dict[str, Any]]) -> str:
    """One row of a table of metrics, plain or with intervals; of `name@k` the last k."""
    name, found = row
    last = {key.partition("@")[0]: key for key in found}
    cells = [
        f"{key} {found[key]:.3f}"
        if isinstance(found[key], float)
        else f"{key} {found[key]['mean']:.3f} [{found[key]['low']:.3f}, {found[key]['high']:.3f}]"
        for key in last.values()
    ]
    return f"{name + ':':<11} {', '.join(cells)}"
