"""Methods side by side: a small shop of two tastes, and a table worked by hand."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
from toy_llm import Script, as_json, writer
from toy_sweep import write_run

from raysys.cli import main
from raysys.comparison.page import PAGE_FILE, RESULTS_FILE, shown, write_comparison
from raysys.comparison.rows import Row, rows_of
from raysys.comparison.settings import CompareSettings
from raysys.comparison.table import measure
from raysys.comparison.work import BASE, ROWS, Cost, Done, Finished, run_rows
from raysys.errors import UserError
from raysys.evaluation.kept_lists import TEST_LISTS_FILE, read_test_lists, write_test_lists
from raysys.pipeline import run_stages
from raysys.settings import parse_settings, read_values
from raysys.stages import rerank
from raysys.store import read_json

ELMREC: dict[str, Any] = {
    "tasks": ["sequential"],
    "small": {
        "width": 16, "layers": 1, "heads": 2, "inner": 32, "dropout": 0.0, "vocabulary": 330,
    },
    "words": {"sigma": 0.5, "layers": 2},
    "negatives": 9,
    "train": {"epochs": 1, "batch_size": 16},
}  # fmt: skip
MODELS = {
    "m": {"backbone": "lightgcn", "settings": {"width": 8}},
    "ease": {"backbone": "ease", "settings": {"reg": 5.0}},
    "both": {
        "backbone": "blend",
        "settings": {"first": "ease", "second": "m"},
        "grid": {"weight": [0.0, 0.5, 1.0]},
    },
}


def settings_of(folder: Path, **changes: Any) -> CompareSettings:
    """A comparison of a new run in `folder`."""
    path = write_run(folder, epochs=2)
    config = read_values(path) | {"models": MODELS, "elmrec": ELMREC | {"graph": "train"}}
    path.write_text(tomli_w.dumps(config))
    values = {"out": folder / "out", "run": path, "k": 5, "slices": [4, 5], "cpus": 0.4} | changes
    return parse_settings(CompareSettings, values, source="test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A blend, ELMRec, a row whose settings are refused at work, and reranking."""
    methods = {
        "both": {},
        "elmrec": {"kind": "elmrec"},
        "broken": {"model": "m", "overrides": ["models.m.start_from=/nowhere"]},
        "asked": {
            "kind": "rerank",
            "model": "ease",
            "overrides": [
                "rerank.test_users=20",
                "rerank.pool=8",
                "rerank.domain=products",
                "rerank.profile_characters=0",
            ],
        },
    }
    settings = settings_of(tmp_path_factory.mktemp("shop"), methods=methods, input_price=3.0)

    @contextmanager
    def toy(name: str, settings: Any, prompts: Any, *_: Any, **__: Any) -> Any:
        yield writer(Script(lambda _: as_json(scores={str(n): 50 for n in range(1, 9)})), prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rerank, "writing", toy)
        return run_rows(settings)


pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.ray
def test_every_row_is_measured_on_the_same_users(finished: Finished) -> None:
    found = write_comparison(finished)
    assert found == read_json(finished.settings.out / RESULTS_FILE)
    assert found["users"] == 20, "those whose lists were reranked"
    assert set(found["rows"]) == {"popularity", "both", "elmrec", "asked"}
    assert list(found["failed"]) == ["broken"]
    assert "/nowhere" in found["failed"]["broken"]
    assert not found["rows"]["elmrec"]["leaks"]
    assert found["rows"]["popularity"]["minus"] is None
    both, popularity = found["rows"]["both"], found["rows"]["popularity"]
    for name, figure in both["minus"].items():
        gain = both["metrics"][name]["mean"] - popularity["metrics"][name]["mean"]
        assert figure["mean"] == pytest.approx(gain)
        assert figure["low"] <= figure["mean"] <= figure["high"]
    assert both["peak_gib"] > 0.05
    assert found["rows"]["asked"]["peak_gib"] is None
    page = (finished.settings.out / PAGE_FILE).read_text()
    assert "<b>broken</b>" in page


@pytest.mark.ray
def test_a_row_says_what_its_own_stage_says(finished: Finished) -> None:
    """Over all users, ours is what the stage `evaluate` measured by itself."""
    alone = [one for one in finished.rows if one.row.name == "both"]
    found = measure(Finished(finished.settings, alone, finished.shared, finished.base))
    theirs = read_json(alone[0].row.folder / "metrics.json")
    assert found["users"] == theirs["evaluated_users"] == 60
    for name in ("both", "popularity"):
        for metric, figure in found["rows"][name]["metrics"].items():
            assert figure["mean"] == pytest.approx(theirs["models"][name][f"{metric}@5"])


@pytest.mark.ray
def test_again_nothing_is_run_again(finished: Finished, capsys: pytest.CaptureFixture) -> None:
    out = finished.settings.out
    rows = {"both": {}, "elmrec": {"kind": "elmrec"}}
    config = out.parent / "compare.toml"
    config.write_text(
        tomli_w.dumps(
            {
                "out": str(out),
                "run": str(finished.settings.run),
                "k": 5,
                "cpus": 0.4,
                "methods": rows,
            }
        )
    )
    before = {path: path.stat().st_mtime_ns for path in (out / ROWS).rglob("manifest.json")}
    costs = {name: (out / ROWS / name / "cost.json").read_text() for name in rows}
    assert main(["compare", str(config), "--json"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["rows"]) == {"popularity", *rows}
    assert {name: (out / ROWS / name / "cost.json").read_text() for name in rows} == costs


@pytest.mark.ray
def test_rows_with_other_data_are_refused(finished: Finished, tmp_path: Path) -> None:
    other = settings_of(tmp_path)
    run = next(row for row in rows_of(other, read_values(other.run)) if row.name == "ease").run
    split = run.data.split.model_copy(update={"seed": 7})
    data = run.data.model_copy(update={"split": split})
    run_stages(run.model_copy(update={"data": data}), ["data"])
    changed = [
        Done(Row(one.row.name, run, one.row.stages, one.row.lists, False, False), one.cost)
        if one.row.name == "elmrec"
        else one
        for one in finished.rows
        if one.row.name in ("both", "elmrec")
    ]
    row = changed[1].row
    lists = read_test_lists(finished.rows[0].row.folder, "both")
    row.folder.mkdir(parents=True)
    write_test_lists(row.folder, lists[0], {row.lists: lists[1]})
    with pytest.raises(UserError, match="has other data than 'both'"):
        measure(Finished(finished.settings, changed, finished.shared, finished.base))


@pytest.mark.ray
def test_by_hand(tmp_path: Path) -> None:
    """Two users with two test items each; one list finds the first at rank 2, one finds none."""
    settings = settings_of(tmp_path, methods={"ease": {}}, input_price=2.0)
    row = rows_of(settings, read_values(settings.run))[0]
    run_stages(row.run, ["data"])
    from raysys.data.dataset import Dataset

    data = Dataset.load(row.run.out / "data", name="x")
    test = [one.tolist() for one in data.histories("test")]
    known = [set(one.tolist()) for one in data.histories("train", "valid", "test")]
    miss = [sorted(set(range(40)) - items) for items in known[:2]]
    lists = np.array([[miss[0][0], test[0][0], -1], [miss[1][0], miss[1][1], miss[1][2]]])
    row.folder.mkdir(parents=True)
    # Another order of users, and one who has no list in the other row.
    write_test_lists(row.folder, np.array([1, 0]), {"ease": lists[[1, 0]]})
    cost = Cost(fingerprints={}, seconds=1.5, peak_gib=0.5, prompt_tokens=600, generated_tokens=0)
    found = measure(Finished(settings, [Done(row, cost)], {}, tmp_path / BASE))
    assert found["users"] == 2
    assert len(test[0]) == 2
    figures = {key: one["mean"] for key, one in found["rows"]["ease"]["metrics"].items()}
    ideal = 1 + 1 / np.log2(3)
    assert figures == pytest.approx(
        {
            "recall": 1 / 2 / 2,
            "ndcg": (1 / np.log2(3)) / ideal / 2,
            "hr": 1 / 2,
            "mrr": 1 / 2 / 2,
            "precision": 1 / 5 / 2,
            "map": (1 / 2) / 2 / 2,
        }
    )
    assert found["rows"]["ease"]["tokens_per_1000_users"] == 10_000
    assert found["rows"]["ease"]["money_per_1000_users"] == pytest.approx(0.02)


def test_a_reranker_costs_what_it_was_asked_and_a_share_of_the_texts(tmp_path: Path) -> None:
    words = ["rerank.test_users=20", "rerank.users=0"]
    methods = {"asked": {"kind": "rerank", "model": "ease", "overrides": words}}
    settings = settings_of(tmp_path, methods=methods, baseline="asked")
    row = rows_of(settings, read_values(settings.run))[0]
    run_stages(row.run, ["data"])
    write_test_lists(row.folder, np.array([0]), {row.lists: np.array([[0, 1, 2]])})
    cost = Cost(fingerprints={}, seconds=1.0, peak_gib=None, prompt_tokens=600, generated_tokens=0)
    tokens = {"prompt_tokens": 60, "cached_prompt_tokens": 40, "generated_tokens": 20}
    texts: Any = SimpleNamespace(figures=tokens, seconds=1)
    found = measure(Finished(settings, [Done(row, cost)], {"data": texts}, tmp_path / BASE))
    # 600 for 20 users who were asked, 120 for all 60.
    assert found["rows"]["asked"]["tokens_per_1000_users"] == 30_000 + 2_000


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"methods": {"easy": {}}}, "no model 'easy': did you mean 'ease'"),
        ({"methods": {"popularity": {}}}, "'popularity' is always there"),
        ({"methods": {"r": {"kind": "rerank"}}}, "`rerank` wants `model`"),
        ({"methods": {"e": {"kind": "elmrec", "model": "m"}}}, "is a model of its own"),
        ({"baseline": "bsae"}, "baseline 'bsae'"),
        ({"methods": {"ease": {"overrides": ["trian.epochs=1"]}}}, "unknown key 'trian'"),
        (
            {"methods": {"elmrec": {"kind": "elmrec", "overrides": ["elmrec.split=valid"]}}},
            'want split = "test"',
        ),
        ({"metods": {}}, "did you mean 'methods'"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    def rows() -> None:
        settings = settings_of(tmp_path, **changes)
        rows_of(settings, read_values(settings.run))

    with pytest.raises(UserError, match=why):
        rows()


def test_a_row_that_leaks_is_marked(tmp_path: Path) -> None:
    words = ["elmrec.graph=explanation_split", "elmrec.words.sequential.whole_words=graph"]
    methods = {"elmrec": {"kind": "elmrec"}, "peeks": {"kind": "elmrec", "overrides": words}}
    settings = settings_of(tmp_path, methods=methods)
    honest, leaky = rows_of(settings, read_values(settings.run))
    assert (honest.leaks, leaky.leaks) == (False, True)
    assert "LEAKY" in leaky.lists
    figure = {"mean": 0.5, "low": 0.4, "high": 0.6}
    row = {
        "metrics": {"ndcg": figure, "recall": figure},
        "minus": None,
        "beyond": {"coverage": 0.1},
        "leaks": True,
        "seconds": 1.0,
        "peak_gib": None,
        "tokens_per_1000_users": 0,
        "money_per_1000_users": 0.0,
    }
    assert shown({"rows": {"peeks": row}})[1][0] == "peeks (LEAKY)"


def test_the_yes_no_recommender_reorders_a_model(tmp_path: Path) -> None:
    methods = {"answers": {"kind": "yes_no", "model": "ease"}}
    settings = settings_of(tmp_path, methods=methods)
    (row,) = rows_of(settings, read_values(settings.run))
    assert (row.run.yes_no.retriever, list(row.run.models)) == ("ease", ["ease"])
    assert row.stages[-3:] == ("yes_no_examples", "yes_no_model", "yes_no_lists")
    assert {"data", "train", "summaries"} <= set(row.stages)
    assert (row.lists, row.engine) == ("yes_no", True)
    with pytest.raises(UserError, match="wants `model`"):
        settings_of(tmp_path, methods={"answers": {"kind": "yes_no"}})
    few = {"answers": {**methods["answers"], "overrides": ["yes_no.pool=4"]}}
    settings = settings_of(tmp_path, methods=few)
    with pytest.raises(UserError, match=r"yes_no\.pool is less than k = 5"):
        rows_of(settings, read_values(settings.run))


def test_without_methods_a_config_has_a_row_for_each_of_its_models(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    rows = {row.name: row for row in rows_of(settings, read_values(settings.run))}
    assert list(rows) == ["m", "ease", "both", "elmrec"]
    assert list(rows["both"].run.models) == ["ease", "m", "both"]
    assert list(rows["ease"].run.models) == ["ease"]
    assert all(row.run.evaluate.mask == "train_valid" for row in rows.values())


def test_lists_that_are_not_there_are_named(tmp_path: Path) -> None:
    write_test_lists(tmp_path, np.array([3]), {"one": np.array([[1, -1]])})
    users, items = read_test_lists(tmp_path, "one")
    assert (users.tolist(), items.tolist()) == ([3], [[1, -1]])
    with pytest.raises(UserError, match=rf"{TEST_LISTS_FILE} has no lists of 'two', but \['one'\]"):
        read_test_lists(tmp_path, "two")
