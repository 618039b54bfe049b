"""How the objective of a sweep depends on each setting, as the papers' figures show it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.store import replace_file
from raysys.tuning.settings import Range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from raysys.tuning.sweep import Sweep

#: A second setting with more values than this is not told apart by lines.
_LINES = 8
_PANELS_IN_A_ROW = 3
Points = list[tuple[Any, float]]


def draw_sensitivity(sweep: Sweep, path: Path) -> None:
    """One panel a setting: each finished trial a dot; of listed values the mean as a line.

    With two listed settings, a line for each value of the other one. Trials that were stopped
    early are hollow.

    Args:
        path: of the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = list(sweep.settings.space)
    columns = min(len(keys), _PANELS_IN_A_ROW)
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, key in zip(axes, keys, strict=False):
        _draw(axis, sweep, key)
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    canvas = FigureCanvasAgg(figure)
    replace_file(path, lambda temporary: canvas.print_figure(temporary, dpi=110, format="png"))


def _draw(axis: Axes, sweep: Sweep, key: str) -> None:
    choices = sweep.settings.space[key]
    place = _places(axis, choices)
    lines: dict[str, Points] = defaultdict(list)
    other = _other(sweep, key)
    for trial in sweep.trials:
        if trial.value is None:
            continue
        x = place(trial.values[key])
        axis.plot(
            x, trial.value, "o", color="tab:gray", ms=5, mfc="none" if trial.stopped else None
        )
        if not trial.stopped:
            lines["" if other is None else json.dumps(trial.values[other])].append((x, trial.value))
    if not isinstance(choices, Range):
        for label, points in sorted(lines.items()):
            means = _means(points)
            axis.plot(*zip(*means, strict=True), marker="", label=f"{other} = {label}")
        if other is not None:
            axis.legend(fontsize="small")
    axis.set_xlabel(key)
    axis.set_ylabel(sweep.settings.figure)


def _places(axis: Axes, choices: tuple[Any, ...] | Range) -> Any:
    """Where a value stands: numbers on a scale, anything else side by side."""
    if isinstance(choices, Range):
        axis.set_xscale("log" if choices.log else "linear")
        return lambda value: value
    if len(choices) > 1 and all(type(value) in (int, float) for value in choices):
        if min(choices) > 0 and max(choices) / min(choices) >= 50:
            axis.set_xscale("log")
        return lambda value: value
    axis.set_xticks(range(len(choices)), [json.dumps(value) for value in choices])
    return choices.index


def _other(sweep: Sweep, key: str) -> str | None:
    """The second setting of two, where both are short lists."""
    keys = [one for one in sweep.settings.space if one != key]
    if len(keys) != 1:
        return None
    choices = sweep.settings.space[keys[0]]
    return keys[0] if not isinstance(choices, Range) and len(choices) <= _LINES else None


def _means(points: Points) -> list[tuple[Any, float]]:
    """The mean figure of each place, from left to right."""
    found: dict[Any, list[float]] = defaultdict(list)
    for x, value in points:
        found[x].append(value)
    return [(x, sum(values) / len(values)) for x, values in sorted(found.items())]
