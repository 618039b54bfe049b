"""The plots: what is drawn, how items are projected, and edge cases."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from raysys.evaluation.report_plots import (
    MAX_POINTS,
    ItemMap,
    neighbours,
    plot_curves,
    plot_map,
    project,
)


def make_map(vectors: np.ndarray, labels: list[str] | None = None) -> ItemMap:
    n = len(vectors)
    return ItemMap(
        vectors.astype(np.float32), labels or ["g"] * n, [f"title {i}" for i in range(n)]
    )


def two_heaps(n: int) -> tuple[np.ndarray, list[str]]:
    vectors = np.random.default_rng(0).normal(size=(n, 8))
    vectors[: n // 2] += 30
    return vectors, ["left"] * (n // 2) + ["right"] * (n - n // 2)


def test_importing_does_not_load_matplotlib_or_sklearn() -> None:
    code = (
        "import sys, raysys.evaluation.report_plots; "
        "print([m for m in ('matplotlib', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_curves_draw_loss_and_metric_in_page_colours() -> None:
    rows = [{"epoch": 1.0, "loss": 0.7}, {"epoch": 3.0, "loss": 0.5, "recall@20": 0.1}]
    plot = plot_curves({"a": rows, "b": rows[:1]}, dashed=["b"])
    assert plot is not None
    assert [(e.series, e.label, e.dashed) for e in plot.legend] == [(1, "a", False), (2, "b", True)]
    assert "Training loss" in plot.svg
    assert "Validation recall@20" in plot.svg
    assert "var(--series-1)" in plot.svg
    assert "var(--series-2)" in plot.svg
    assert "var(--ink)" in plot.svg
    # No stand-in is left, and black would be invisible on a dark page.
    assert not re.search(r"#0[0123]0[0-9]0[0-9]|#000000", plot.svg)
    assert plot.svg.startswith("<svg")
    assert "<metadata" not in plot.svg
    head = plot.svg[: plot.svg.index(">")]
    assert "viewBox" in head
    assert " width=" not in head
    assert " height=" not in head


def test_curves_with_less_to_show() -> None:
    only_loss = plot_curves({"a": [{"epoch": 1.0, "loss": 0.7}]})
    assert only_loss is not None
    assert "Validation" not in only_loss.svg
    only_metric = plot_curves({"a": [{"epoch": 1.0, "ndcg@10": 0.7}]})
    assert only_metric is not None
    assert "Training loss" not in only_metric.svg
    assert plot_curves({}) is None
    assert plot_curves({"a": []}) is None
    assert plot_curves({"a": [{"loss": 0.7}]}) is None
    # One row without an epoch does not spoil the others.
    assert plot_curves({"a": [{"loss": 0.7}, {"epoch": 1.0, "loss": 0.5}]}) is not None


def test_projection_keeps_two_heaps_apart() -> None:
    vectors, _ = two_heaps(80)
    points, method = project(vectors, seed=1)
    assert method == "t-SNE after PCA"
    assert points.shape == (80, 2)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(axis=1)
    assert ((nearest < 40) == (np.arange(80) < 40)).all()
    np.testing.assert_array_equal(points, project(vectors, seed=1)[0])


@pytest.mark.parametrize(
    "vectors",
    [
        np.random.default_rng(0).normal(size=(29, 5)),  # too few for t-SNE
        np.ones((40, 5)),  # all equal
        np.outer(np.arange(40.0), np.ones(5)),  # on a line
        np.arange(40.0)[:, None],  # one column
        np.zeros((1, 3)),  # one item
    ],
)
def test_projection_falls_back_to_pca(vectors: np.ndarray) -> None:
    points, method = project(vectors, seed=0)
    assert method == "PCA"
    assert points.shape == (len(vectors), 2)
    assert np.isfinite(points).all()


def test_map_colours_the_eight_largest_groups() -> None:
    # Group sizes 10, 9, …, 1 and two items without a group: ranks 9 and 10 and those are the rest.
    labels = [f"g{size}" for size in range(1, 11) for _ in range(size)] + ["", ""]
    vectors = np.random.default_rng(0).normal(size=(57, 1))
    plot = plot_map(make_map(vectors, labels), seed=0)
    assert plot is not None
    expected = [(11 - size, f"g{size} ({size})") for size in range(10, 2, -1)]
    assert [(e.series, e.label) for e in plot.legend] == [*expected, (0, "all others (5)")]
    assert plot.svg.count("<use") == 57
    assert "g10" not in plot.svg


def test_map_draws_a_sample_of_a_large_catalogue() -> None:
    plot = plot_map(make_map(np.ones((MAX_POINTS + 500, 3))), seed=0)
    assert plot is not None
    assert plot.svg.count("<use") == MAX_POINTS
    assert plot.legend[0].label == f"g ({MAX_POINTS})"


def test_map_of_almost_nothing_is_left_out() -> None:
    assert plot_map(make_map(np.ones((2, 3))), seed=0) is None
    assert plot_map(make_map(np.ones((0, 3))), seed=0) is None
    assert neighbours(make_map(np.ones((3, 3))), seed=0) == []


def test_neighbours_by_cosine() -> None:
    # Directions 0°, 1°, 2°, 3° and the same around 90°; lengths differ and must not matter.
    angles = np.radians([0, 1, 2.5, 4.5, 90, 91, 92.5, 94.5])
    lengths = np.array([1, 50, 3, 9, 7, 2, 90, 4])[:, None]
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths
    found = dict(neighbours(make_map(vectors), seed=0, examples=8))
    assert found["title 0"] == ["title 1", "title 2", "title 3"]
    assert found["title 6"] == ["title 5", "title 7", "title 4"]
    assert len(found) == 8


def test_item_map_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        ItemMap(np.ones((2, 3)), ["a"], ["t", "u"])
    with pytest.raises(ValueError, match="NaN"):
        ItemMap(np.full((1, 3), np.nan), ["a"], ["t"])
