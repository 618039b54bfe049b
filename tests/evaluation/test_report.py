"""The report: figures, hostile text, missing parts, size and repeatability."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from raysys.evaluation.protocols import RankingResult
from raysys.evaluation.report import (
    Comparison,
    ItemExample,
    ItemMap,
    Recommendation,
    ReportData,
    StageSummary,
    UserExample,
    compare,
    render,
    write_report,
)

HOSTILE = "<script>alert(1)</script>"
LINK = "https://evil.example/?a=1&b=\"x\" onload='y'"


class Page(HTMLParser):
    """Collects tags, attributes that could load something, and the text by section id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: dict[str, str] = {"": ""}
        self._section = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.text[self._section] = ""

    def handle_data(self, data: str) -> None:
        self.text[self._section] += data + " "


def words(text: str) -> str:
    return " ".join(text.split())


def example(**changes: Any) -> ReportData:
    base: dict[str, Any] = {
        "title": "Books",
        "dataset": {"name": "books", "users": 11000, "splits": {"train": 120464, "test": 40106}},
        "models": {
            "popularity": {"recall@20": 0.05, "ndcg@20": 0.03},
            "lightgcn": {"recall@20": 0.1, "ndcg@20": 0.08},
            "lightgcn_con": {"recall@20": 0.11, "ndcg@20": 0.0801},
            "lightgcn_con_shuffled": {"recall@20": 0.1, "ndcg@20": 0.0801},
        },
        "evaluated_users": 9860,
        "comparisons": [
            Comparison(
                model="lightgcn_con",
                baseline="lightgcn_con_shuffled",
                metric="recall@20",
                difference=0.01,
                low=0.004,
                high=0.016,
            )
        ],
        "stages": {
            "import": StageSummary(seconds=2.04, rows=200860, dropped={"no_title": 7, "none": 0}),
            "profiles": StageSummary(seconds=125, rows=9332, figures={"prompt_tokens": 1234567}),
        },
        "curves": {
            "lightgcn": [
                {"epoch": 1, "loss": 0.7},
                {"epoch": 2, "loss": 0.5, "recall@20": 0.08},
                {"epoch": 3, "loss": 0.4, "recall@20": 0.1},
            ],
            "lightgcn_con_shuffled": [{"epoch": 1, "loss": 0.8}],
        },
        "users": [
            UserExample(
                user_id="u7",
                history=[f"Read {i}" for i in range(12)],
                recommendations=[Recommendation(title="Dune", score=1.5)],
                profile="Likes deserts.",
            )
        ],
        "item_profiles": [ItemExample(title="Dune", profile="For readers of epics.")],
        "notes": ["Two cores."],
        "config": {"seed": 2023, "nested": {"lr": 1e-3}},
        "versions": {"raysys": "0.1.0"},
    }
    return ReportData(**{**base, **changes})


def example_map(n: int = 60, groups: int = 10, width: int = 6) -> ItemMap:
    generator = np.random.default_rng(0)
    return ItemMap(
        generator.normal(size=(n, width)).astype(np.float32),
        [f"group {i % groups}" for i in range(n)],
        [f"title {i}" for i in range(n)],
    )


def test_files_and_keys(tmp_path: Path) -> None:
    data = example()
    write_report(data, tmp_path / "new" / "report", example_map())
    folder = tmp_path / "new" / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert found["models"]["lightgcn"] == {"recall@20": 0.1, "ndcg@20": 0.08}
    assert found["stages"]["import"]["dropped"] == {"no_title": 7, "none": 0}
    assert found["stages"]["profiles"]["seconds"] == 125
    assert found["stages"]["profiles"]["rows"] == 9332
    assert found["dataset"]["splits"]["test"] == 40106
    assert ReportData(**found) == data
    assert "item_map" not in found


def test_figures_on_the_page() -> None:
    page = Page(render(example(), example_map()))
    models = words(page.text["models"])
    assert "LightGCN + shuffled profiles control" in models
    # Against lightgcn: 0.05 / 0.1 - 1 = -50 %, 0.11 / 0.1 - 1 = +10 %.
    assert "0.0500 -50.0 %" in models
    assert "0.1100 +10.0 %" in models
    assert "+0.0100 +0.0040 to +0.0160 better" in models
    assert "0.1100, of its shuffled control 0.1000; the interval" in models
    assert "mrr@k" not in models  # only metrics of this run are explained
    assert "train 120,464 · test 40,106" in words(page.text["dataset"])
    stages = words(page.text["stages"])
    assert "import 2.0 s 200,860 7" in stages
    assert "profiles 2 min 05 s 9,332 0 prompt tokens 1,234,567" in stages
    assert stages.endswith("import no title 7")  # the reason that dropped nothing is left out
    users = words(page.text["users"])
    assert "(last 10 of 12)" in users
    assert "Read 2 Read 3" in users
    assert "Read 1 " not in users
    assert "1.500 Dune" in users
    assert '"seed": 2023' in page.text["reproduce"]


def test_every_model_but_the_baseline_shows_its_change() -> None:
    models = {"ease": {"recall@20": 0.05}, "lightgcn": {"recall@20": 0.1}}
    shown = words(Page(render(example(models=models, comparisons=[]))).text["models"])
    assert "0.0500 -50.0 %" in shown
    assert shown.count(" %") == 1


def test_best_of_each_column_is_bold_and_ties_share_it() -> None:
    page = render(example())
    bold = re.findall(r'<td class="number best">([\d.]+)<', page)
    # recall: only lightgcn_con; ndcg: lightgcn_con and its control tie at 0.0801.
    assert bold == ["0.1100", "0.0801", "0.0801"]


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (0.001, 0.02, "lies above zero: right text beats wrong text"),
        (-0.02, -0.001, "lies below zero: wrong text beats right text"),
        (-0.01, 0.02, "holds zero: no sign that the text helped"),
        (None, None, "no interval was computed"),
    ],
)
def test_the_control_is_put_into_words(
    low: float | None, high: float | None, sentence: str
) -> None:
    found = []
    if low is not None and high is not None:
        pair = {"model": "lightgcn_con", "baseline": "lightgcn_con_shuffled"}
        found = [Comparison(**pair, metric="recall@20", difference=0.01, low=low, high=high)]
    assert sentence in words(Page(render(example(comparisons=found))).text["models"])


def test_hostile_text_comes_out_as_text() -> None:
    nasty = f"{HOSTILE} {LINK} </details></pre><img src=x onerror=alert(1)> $\\bad{{$ _x"
    data = example(
        title=nasty,
        dataset={nasty: nasty, "nested": {nasty: [nasty]}},
        models={nasty: {"recall@20": 0.2}, "lightgcn": {"recall@20": 0.1, nasty: 0.3}},
        comparisons=[
            Comparison(model=nasty, baseline=nasty, metric=nasty, difference=0, low=0, high=0)
        ],
        stages={
            nasty: StageSummary(seconds=1, rows=1, dropped={nasty: 1}, figures={nasty: 1}),
        },
        curves={nasty: [{"epoch": 1, "loss": 1, nasty: 1, f"{HOSTILE}@20": 1}]},
        users=[
            UserExample(
                user_id=nasty,
                history=[nasty],
                recommendations=[Recommendation(title=nasty, score=1)],
                profile=nasty,
            )
        ],
        item_profiles=[ItemExample(title=nasty, profile=nasty)],
        notes=[nasty],
        config={nasty: nasty},
        versions={nasty: nasty},
    )
    # As a group label too: `$…$` would be mathematics and `_x` hidden in a matplotlib legend.
    labels = [nasty, "_hidden $\\frac{$", ""] * 20
    items = ItemMap(example_map().vectors, labels, [nasty] * 60)
    raw = render(data, items)
    assert HOSTILE not in raw
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in raw
    assert "evil.example/?a=1&amp;b=&#34;x&#34;" in raw
    page = Page(raw)
    assert {"script", "img", "a", "link", "iframe", "object", "form"}.isdisjoint(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for section in ("models", "dataset", "curves", "map", "users", "profiles", "stages"):
        assert HOSTILE in page.text[section], section
    assert "_hidden $\\frac{$ (20)" in page.text["map"]
    for drawing in re.findall(r"<svg.*?</svg>", raw, flags=re.DOTALL):
        assert "alert" not in drawing
        assert "hidden" not in drawing


def test_nothing_is_loaded_from_anywhere() -> None:
    raw = render(example(), example_map())
    page = Page(raw)
    assert raw.count("<svg") == 2
    loads = [(n, v) for n, v in page.attributes if n in {"src", "href", "xlink:href", "srcset"}]
    assert loads
    assert all(name == "xlink:href" and value.startswith("#") for name, value in loads)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", raw))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in raw
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", raw))


def test_the_page_is_the_same_every_time() -> None:
    assert render(example(), example_map(), seed=3) == render(example(), example_map(), seed=3)


@pytest.mark.parametrize(
    ("fields", "section"),
    [
        ({"dataset": {}}, "dataset"),
        ({"curves": {}}, "curves"),
        ({"users": []}, "users"),
        ({"item_profiles": []}, "profiles"),
        ({"stages": {}}, "stages"),
        ({"config": {}, "versions": {}}, "reproduce"),
    ],
)
def test_missing_parts_are_left_out(fields: dict[str, Any], section: str) -> None:
    whole = Page(render(example())).text
    assert whole.keys() - Page(render(example(**fields))).text.keys() == {section}


def test_the_smallest_report(tmp_path: Path) -> None:
    data = ReportData(title="One", models={"ease": {"recall@10": 0.2}}, evaluated_users=1)
    write_report(data, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "asked 1 model to rank" in words(page.text[""])
    assert set(page.text) == {"", "models"}
    assert "control" not in page.text["models"]
    assert "best" not in [value for _, value in page.attributes]
    # A run that stopped before evaluation has no models at all.
    empty = Page(render(ReportData(title="None", models={}, evaluated_users=0)))
    assert set(empty.text) == {""}


def test_a_big_report_stays_small(tmp_path: Path) -> None:
    long = "word " * 100_000
    data = example(
        users=[
            UserExample(
                user_id=str(i),
                history=[long[:5000]] * 500,
                recommendations=[Recommendation(title=long[:5000], score=0)] * 50,
                profile=long,
            )
            for i in range(12)
        ],
        item_profiles=[ItemExample(title="x" * 9000, profile=long)] * 40,
    )
    # Equal vectors: PCA, so that the test does not wait for t-SNE of 3,000 points.
    items = ItemMap(np.ones((5000, 4), np.float32), ["a", "b"] * 2500, ["t"] * 5000)
    write_report(data, tmp_path, items)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_numbers_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        example(models={"lightgcn": {"recall@20": float("nan")}})
    with pytest.raises(ValidationError, match="finite"):
        example(curves={"lightgcn": [{"epoch": 1, "loss": float("inf")}]})


def test_compare_pairs_the_same_users() -> None:
    users = np.array([1, 4, 6])

    def result(values: list[float], rows: np.ndarray = users) -> RankingResult:
        return RankingResult({}, {"recall@5": np.array(values)}, rows, rows[:, None])

    results = {
        "a": result([0.5, 0.75, 1.0]),
        "b": result([0.25, 0.5, 0.75]),
        "c": result([0, 0, 0], np.array([1, 4, 7])),
    }
    found = compare(results, "a", "b", "recall@5", seed=0)
    # Every user gains exactly 0.25.
    assert (found.difference, found.low, found.high) == (0.25, 0.25, 0.25)
    assert (found.model, found.baseline, found.metric) == ("a", "b", "recall@5")
    with pytest.raises(ValueError, match="different users"):
        compare(results, "a", "c", "recall@5", seed=0)
