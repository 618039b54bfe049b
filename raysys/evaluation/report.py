"""The report of a run: `report.json` for programs, `report.html` for people.

The page is one file: no script, no link out, pictures inline. Everything in it may come
from a stranger's item text, so the template escapes every value; the only markup passed
through is the SVG of `report_plots`, which holds no text of the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field

from raysys.evaluation.metrics import paired_bootstrap
from raysys.evaluation.protocols import RankingResult
from raysys.evaluation.report_plots import ItemMap, Plot, neighbours, plot_curves, plot_map
from raysys.pages import page
from raysys.store import replace_file, write_json

__all__ = [
    "Comparison",
    "ItemExample",
    "ItemMap",
    "Recommendation",
    "ReportData",
    "StageSummary",
    "UserExample",
    "compare",
    "write_report",
]

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
#: The end of a model's name that marks the control: profiles handed to wrong owners.
CONTROL_SUFFIX = "_shuffled"
#: The metric of the summary sentences, where the run has it.
MAIN_METRIC = "recall@20"

_MODELS = {
    "popularity": ("Popularity", "everyone gets the most popular items: the floor to beat"),
    "item_knn": ("Item neighbours", "items often taken together, no text"),
    "ease": ("EASE", "linear item-to-item model, no text: simple and strong"),
    "lightgcn": ("LightGCN", "graph of who took what, no text"),
    "gccf": ("GCCF", "graph of who took what, no text"),
    "sgl": ("SGL", "graph of who took what, no text"),
    "simgcl": ("SimGCL", "graph of who took what, no text"),
    "dccf": ("DCCF", "graph of who took what, no text"),
    "autocf": ("AutoCF", "graph of who took what, no text"),
}
_METRICS = {
    "recall": "the share of a user's held-out items that are among the first k",
    "ndcg": "like recall, but a hit near the top counts more; 1 is a perfect order",
    "hr": "hit rate: the share of users with at least one held-out item among the first k",
    "mrr": "1 divided by the rank of the first hit, 0 where it lies beyond k",
    "precision": "the share of the first k that are held-out items",
    "coverage": "the share of the catalogue that is in anybody's list",
    "novelty": "how rare the shown items are: bits, 1 more for half as popular",
    "diversity": "how unlike the items of a list are, by their profile vectors",
    "map": "mean average precision: precision at each hit, averaged; the order counts",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StageSummary(_Part):
    """What one stage took and produced; `figures` holds tokens, rates and the like."""

    seconds: float
    rows: int
    dropped: dict[str, int] = Field(default_factory=dict)
    figures: dict[str, float] = Field(default_factory=dict)


class Recommendation(_Part):
    """One item of a list, best first."""

    title: str
    score: float


class UserExample(_Part):
    """A user with the titles of the train history (in order) and the recommendations."""

    user_id: str
    history: list[str]
    recommendations: list[Recommendation]
    profile: str | None = None


class ItemExample(_Part):
    """An item with its written profile; None where the LLM answered "None" or failed."""

    title: str
    profile: str | None = None


class Comparison(_Part):
    """Mean of model minus baseline over the same users, with a 95 % bootstrap interval."""

    model: str
    baseline: str
    metric: str
    difference: float
    low: float
    high: float


class ReportData(_Part):
    """Everything that `report.json` holds; missing parts stay empty and are left out."""

    title: str
    dataset: dict[str, Any] = Field(default_factory=dict)
    models: dict[str, dict[str, float]]
    baseline: str = "lightgcn"
    evaluated_users: int
    comparisons: list[Comparison] = Field(default_factory=list)
    stages: dict[str, StageSummary] = Field(default_factory=dict)
    curves: dict[str, list[dict[str, float]]] = Field(default_factory=dict)
    users: list[UserExample] = Field(default_factory=list)
    item_profiles: list[ItemExample] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


def compare(
    results: Mapping[str, RankingResult], model: str, baseline: str, metric: str, seed: int
) -> Comparison:
    """Compare two models on the users that both were measured on.

    Raises:
        ValueError: the two were measured on different users.
    """
    ours, theirs = results[model], results[baseline]
    if ours.users.tolist() != theirs.users.tolist():
        raise ValueError(f"{model} and {baseline} were measured on different users.")
    found = paired_bootstrap(ours.per_user[metric], theirs.per_user[metric], seed)
    return Comparison(model=model, baseline=baseline, metric=metric, **found._asdict())


def write_report(
    data: ReportData, output: Path, item_map: ItemMap | None = None, seed: int = 0
) -> None:
    """Write `report.json` and `report.html` into a folder, each whole or not at all.

    Args:
        data: the figures and examples.
        output: a folder; made where it does not exist.
        item_map: item vectors to draw; left out of the JSON file.
        seed: for the sample and the projection of the map.
    """
    text = render(data, item_map, seed)
    write_json(output / REPORT_JSON, data.model_dump(mode="json"))
    replace_file(output / REPORT_HTML, lambda path: path.write_text(text, encoding="utf-8"))


def render(data: ReportData, item_map: ItemMap | None = None, seed: int = 0) -> str:
    """The page as text."""
    controls = [name for name in data.models if name.endswith(CONTROL_SUFFIX)]
    found = dict.fromkeys(key for row in data.models.values() for key in row)
    # The longest lists first: the papers' main columns stand where they are seen at once.
    metrics = sorted(found, key=lambda key: -int(key.partition("@")[2] or 0))
    kinds = {key.partition("@")[0] for key in metrics}
    return page(
        "raysys.evaluation",
        "report.html",
        {"plain": _plain, "duration": _duration, "words": _words},
        data=data,
        describe=_describe,
        metrics=metrics,
        rows=_metric_rows(data, metrics),
        meanings={name: text for name, text in _METRICS.items() if name in kinds},
        controls=controls,
        findings=_findings(data, metrics),
        curves=_drawing(plot_curves(data.curves, controls)),
        map=_drawing(plot_map(item_map, seed)) if item_map is not None else None,
        neighbours=neighbours(item_map, seed) if item_map is not None else [],
        dropped=[
            (name, reason, rows)
            for name, stage in data.stages.items()
            for reason, rows in stage.dropped.items()
            if rows
        ],
        config=json.dumps(data.config, indent=2, ensure_ascii=False, default=str),
    )


def _drawing(plot: Plot | None) -> dict[str, Any] | None:
    if plot is None:
        return None
    return {"svg": Markup(plot.svg), "legend": plot.legend, "method": plot.method}


def _describe(name: str) -> tuple[str, str]:
    """A readable name and one line on what the model is; unknown names stay as they are."""
    plain = name.removesuffix(CONTROL_SUFFIX)
    base, _, alignment = plain.rpartition("_")
    if alignment in {"con", "gen"} and base in _MODELS:
        label = _MODELS[base][0]
        if plain != name:
            return f"{label} + shuffled profiles", "control: every profile given to a wrong owner"
        kind = "contrastive" if alignment == "con" else "generative"
        return f"{label} + profiles", f"graph and LLM-written profiles, {kind} alignment"
    return _MODELS.get(name, (name, ""))


def _metric_rows(data: ReportData, metrics: list[str]) -> list[dict[str, Any]]:
    """Rows of the metrics table: text, whether best of its column, change to the baseline."""
    values = list(data.models.values())
    best = {key: max(round(row[key], 4) for row in values if key in row) for key in metrics}
    base = data.models.get(data.baseline, {})
    rows = []
    for name, figures in data.models.items():
        cells = []
        for key in metrics:
            value = figures.get(key)
            if value is None:
                cells.append({"text": "-", "best": False, "change": ""})
                continue
            change = ""
            if name != data.baseline and base.get(key, 0) > 0:
                change = _percent(value, base[key])
            top = len(values) > 1 and round(value, 4) == best[key]
            cells.append({"text": f"{value:.4f}", "best": top, "change": change})
        rows.append({"name": name, "cells": cells, "control": name.endswith(CONTROL_SUFFIX)})
    return rows


def _findings(data: ReportData, metrics: list[str]) -> list[str]:
    """What the control says about each model that has one, in a sentence."""
    metric = MAIN_METRIC if MAIN_METRIC in metrics else next(iter(metrics), "")
    known = {(c.model, c.baseline, c.metric): c for c in data.comparisons}
    sentences = []
    for name, figures in data.models.items():
        control = name + CONTROL_SUFFIX
        if metric not in figures or metric not in data.models.get(control, {}):
            continue
        ours, theirs = figures[metric], data.models[control][metric]
        label = _describe(name)[0]
        start = f"{metric} of {label} is {ours:.4f}, of its shuffled control {theirs:.4f}"
        found = known.get((name, control, metric))
        if found is None:
            end = "no interval was computed, so a small difference may be chance"
        elif found.low > 0:
            end = "the interval of the difference lies above zero: right text beats wrong text"
        elif found.high < 0:
            end = "the interval of the difference lies below zero: wrong text beats right text"
        else:
            end = "the interval of the difference holds zero: no sign that the text helped"
        sentences.append(f"{start}; {end}.")
    return sentences


def _percent(value: float, base: float) -> str:
    return f"{100 * (value - base) / base:+.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _plain(value: Any) -> str:
    """A value of the data set table as text: 1,682, or `train 80,000 · test 20,000`."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, dict):
        return " · ".join(f"{_words(str(key))} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    return str(value)
