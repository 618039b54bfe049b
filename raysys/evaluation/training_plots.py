"""Pictures of a graph-attentive language model: R within a prompt, and losses beside the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysys.store import replace_file


def draw_relations(relations: np.ndarray, kind: str, path: Path) -> None:
    """R between the tokens of one prompt as a heat map.

    Args:
        relations: (T, T).
        kind: what R is, for the title.
        path: of the PNG file.
    """
    figure, axes = _figure(1)
    later = np.triu(np.ones(relations.shape, bool), 1)
    lower = np.where(later, np.nan, relations)
    shown = axes[0].imshow(lower, cmap="viridis", vmin=0, vmax=max(1.0, float(relations.max())))
    axes[0].set(
        title=f"R added to the attention ({kind})",
        xlabel="token that is looked at",
        ylabel="token that looks",
    )
    figure.colorbar(shown, ax=axes[0], shrink=0.8)
    _write(figure, path)


def draw_training(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, path: Path
) -> None:
    """The loss of each step by epoch, and the metric where it was measured.

    Args:
        histories: step → one row an epoch with epoch, loss, and the metric or null.
        metric: its key.
        path: of the PNG file.
    """
    figure, axes = _figure(len(histories))
    for place, (step, rows) in enumerate(histories.items()):
        axis = axes[place]
        epochs = [row["epoch"] for row in rows]
        axis.plot(epochs, [row["loss"] for row in rows], color="tab:blue")
        axis.set_title(step)
        axis.set_xlabel("epoch")
        axis.set_ylabel("training loss", color="tab:blue")
        measured = [(row["epoch"], row[metric]) for row in rows if row.get(metric) is not None]
        if measured:
            right = axis.twinx()
            right.plot(*zip(*measured, strict=True), color="tab:orange")
            right.set_ylabel(f"validation {metric}", color="tab:orange")
    _write(figure, path)


def _figure(columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * columns, 4), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _write(figure: Any, path: Path) -> None:
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
