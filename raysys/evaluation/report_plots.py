"""The two plots of the report, as inline SVG that takes its colours from the page.

Matplotlib and scikit-learn are imported inside the functions: they are slow to load and
only the report needs them. No text of an item ever enters a plot: groups and models are
named in the legend, which the HTML template writes and escapes.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours named `--series-1` … in the page's style sheet; index 0 is the colour of "the rest".
SERIES = 8
#: More points than this make the page heavy and the map no clearer.
MAX_POINTS = 3000
#: t-SNE needs neighbours to work with; below this a plain PCA is drawn.
MIN_TSNE = 30
#: PCA to this width comes before t-SNE.
PCA_WIDTH = 50

# Stand-ins that matplotlib accepts as colours; `_svg` swaps them for the page's own.
_INK, _LINE = "#010101", "#020202"


@dataclass(frozen=True)
class ItemMap:
    """Item vectors for the two-dimensional map.

    Attributes:
        vectors: (n, d) float32.
        labels: (n,) a group name for each item, such as its first genre; "" for none.
        titles: (n,) names of the items.
    """

    vectors: np.ndarray
    labels: Sequence[str]
    titles: Sequence[str]

    def __post_init__(self) -> None:
        n = len(self.vectors)
        if self.vectors.ndim != 2 or len(self.labels) != n or len(self.titles) != n:
            raise ValueError(
                f"item map: vectors {self.vectors.shape}, {len(self.labels)} labels and "
                f"{len(self.titles)} titles do not belong together."
            )
        if not np.isfinite(self.vectors).all():
            raise ValueError("item map: the vectors hold NaN or infinite numbers.")

    def sample(self, size: int, seed: int) -> ItemMap:
        """At most `size` items, drawn evenly, in their old order."""
        if len(self.vectors) <= size:
            return self
        chosen = np.random.default_rng(seed).choice(len(self.vectors), size, replace=False)
        chosen.sort()
        return ItemMap(
            self.vectors[chosen],
            [self.labels[row] for row in chosen],
            [self.titles[row] for row in chosen],
        )


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend: colour number (0: the rest), dashed or not, and its name."""

    series: int
    label: str
    dashed: bool = False


@dataclass(frozen=True)
class Plot:
    """A drawing and its legend.

    Attributes:
        svg: an `<svg>` element without text of the data, safe to place in a page as it is.
        legend: to be written, and escaped, by the page.
        method: for the map, how it was projected.
    """

    svg: str
    legend: list[LegendEntry]
    method: str = ""


def plot_curves(
    curves: Mapping[str, Sequence[Mapping[str, float]]], dashed: Sequence[str] = ()
) -> Plot | None:
    """Training loss and the first validation metric by epoch, one line a model.

    Args:
        curves: model -> rows with `epoch`, and `loss` or a key such as `recall@20` or both.
        dashed: models to draw dashed (controls).

    Returns:
        None where no row holds anything to draw.
    """
    keys = {key: None for rows in curves.values() for row in rows if "epoch" in row for key in row}
    metrics = [key for key in keys if re.fullmatch(r"[a-z]+@\d+", key)]
    shown = [key for key in keys if key == "loss"] + metrics[:1]
    if not shown:
        return None
    figure = _figure(3.3)
    legend = [
        LegendEntry(1 + place % SERIES, name, name in dashed or place >= SERIES)
        for place, name in enumerate(curves)
    ]
    for place, key in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1)
        heading = "Training loss" if key == "loss" else f"Validation {key}"
        axes.set_title(heading, loc="left", color=_INK)
        axes.set_xlabel("epoch")
        _tidy(axes)
        for entry in legend:
            rows = [row for row in curves[entry.label] if row.keys() >= {"epoch", key}]
            points = [(row["epoch"], row[key]) for row in rows]
            if points:
                epochs, values = zip(*points, strict=True)
                axes.plot(
                    epochs,
                    values,
                    color=_series(entry.series),
                    linewidth=1.8,
                    linestyle=(0, (4, 2)) if entry.dashed else "-",
                    marker="o",
                    markersize=3 if len(points) <= 20 else 0,
                )
    return Plot(_svg(figure, "curves"), legend)


def plot_map(items: ItemMap, seed: int) -> Plot | None:
    """Item vectors in two dimensions, the eight largest groups coloured.

    Returns:
        None for fewer than three items.
    """
    items = items.sample(MAX_POINTS, seed)
    if len(items.vectors) < 3:
        return None
    points, method = project(items.vectors, seed)
    counts = Counter(label for label in items.labels if label)
    groups = sorted(counts, key=lambda label: (-counts[label], label))[:SERIES]
    number = {label: place + 1 for place, label in enumerate(groups)}
    member = np.array([number.get(label, 0) for label in items.labels])
    figure = _figure(6.0)
    axes = figure.add_subplot(1, 1, 1)
    for series in [0, *number.values()]:  # the rest first, so that it lies below
        part = points[member == series]
        axes.plot(
            part[:, 0],
            part[:, 1],
            linestyle="",
            marker="o",
            markersize=2.6 if series == 0 else 3.8,
            markeredgewidth=0,
            color=_series(series),
            alpha=0.5 if series == 0 else 0.85,
        )
    axes.set_axis_off()
    legend = [LegendEntry(number[label], f"{label} ({counts[label]})") for label in groups]
    rest = int((member == 0).sum())
    if rest:
        legend.append(LegendEntry(0, f"all others ({rest})"))
    return Plot(_svg(figure, "map"), legend, method)


def project(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Two dimensions for a drawing: PCA to 50, then t-SNE; PCA alone for few or equal items.

    Args:
        vectors: (n, d), n at least 1.
        seed: the same seed gives the same drawing on the same machine.

    Returns:
        (n, 2) float64, and the name of the method.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n, width = vectors.shape
    wide = np.asarray(vectors, dtype=np.float64)
    if width < 2:
        wide = np.pad(wide, ((0, 0), (0, 2 - width)))
    kept = max(1, min(PCA_WIDTH, n, wide.shape[1]))
    # Equal items have no variance to explain; scikit-learn divides by it all the same.
    with np.errstate(invalid="ignore"):
        reduced = PCA(n_components=kept, random_state=seed).fit_transform(wide)
    if kept < 2:
        reduced = np.pad(reduced, ((0, 0), (0, 1)))
    # t-SNE scales its start by the spread of the first two components: they must have one.
    if n < MIN_TSNE or reduced[:, :2].std(axis=0).min() < 1e-12:
        return reduced[:, :2], "PCA"
    perplexity = min(30.0, (n - 1) / 3)
    # Half of the usual 1,000 steps: groups are apart by then, and a report should not wait.
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed, max_iter=500)
    return np.asarray(tsne.fit_transform(reduced), dtype=np.float64), "t-SNE after PCA"


def neighbours(items: ItemMap, seed: int, examples: int = 6) -> list[tuple[str, list[str]]]:
    """For a few items drawn at random, the titles of the three closest by cosine."""
    items = items.sample(MAX_POINTS, seed)
    n = len(items.vectors)
    if n < 4:
        return []
    lengths = np.linalg.norm(items.vectors, axis=1, keepdims=True)
    unit = items.vectors / np.maximum(lengths, 1e-12)
    chosen = np.random.default_rng(seed).choice(n, min(examples, n), replace=False)
    near = unit[chosen] @ unit.T  # (examples, n)
    near[np.arange(len(chosen)), chosen] = -np.inf
    order = np.argsort(-near, axis=1, kind="stable")[:, :3]
    return [
        (items.titles[row], [items.titles[other] for other in others])
        for row, others in zip(chosen.tolist(), order.tolist(), strict=True)
    ]


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(10, height), layout="constrained", facecolor="none")


def _series(number: int) -> str:
    return f"#0300{number:02x}"


def _tidy(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor("none")
    axes.grid(True, color=_LINE, linewidth=0.6)
    axes.tick_params(colors=_INK, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.label.set_color(_INK)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_LINE)


def _svg(figure: Figure, name: str) -> str:
    """Draw as an `<svg>` element: no date, no random ids, colours as variables of the page."""
    import matplotlib

    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": f"raysys-{name}", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # Fixed sizes would overflow a narrow screen, and group ids would clash between two plots.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace(_INK, "var(--ink)").replace(_LINE, "var(--line)")
    return re.sub(r"#0300(\d\d)", lambda found: f"var(--series-{int(found[1])})", text)
