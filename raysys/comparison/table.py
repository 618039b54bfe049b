"""Measure the lists of all rows together: the same users, the same items, one set of metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from raysys.comparison.settings import POPULARITY
from raysys.comparison.work import Done, Finished, tokens
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.evaluation.beyond import list_figures
from raysys.evaluation.kept_lists import read_test_lists
from raysys.evaluation.metrics import hit_matrix, intervals, ranking_metrics
from raysys.models.popularity import Popularity
from raysys.models.profiles import Profiles
from raysys.ranking.retrieve import retrieve
from raysys.runs import RunDirectory
from raysys.schema import TEST, TRAIN, VALID
from raysys.text.embeddings import VECTORS_FILE

METRICS = ("recall", "ndcg", "hr", "mrr", "precision", "map")
Figures = dict[str, np.ndarray]


def measure(finished: Finished) -> dict[str, Any]:
    """The table of a comparison, as JSON values.

    All figures are means over the users that every row has a list for; `low` and `high` are the
    95 % interval by bootstrap over these users, and `minus` is the difference from the baseline,
    user by user. A row that failed has its `problem` instead.

    Raises:
        UserError: rows whose data sets differ, no user that all have a list for, or a baseline
            that failed.
    """
    settings = finished.settings
    rows = [one for one in finished.rows if one.cost is not None]
    data = _dataset(rows)
    k, train = settings.k, data.matrix(TRAIN)
    known = data.matrix(TRAIN, VALID, opinion=None)
    relevant = data.matrix(TEST)
    relevant = (relevant - relevant.multiply(known)).tocsr()
    relevant.eliminate_zeros()
    lists = {one.row.name: read_test_lists(one.row.folder, one.row.lists) for one in rows}
    users = np.flatnonzero(np.diff(relevant.indptr))
    for found, _ in lists.values():
        users = np.intersect1d(users, found)
    if not len(users):
        raise UserError("no user with a test item has a list in all rows: measure more of them.")
    cut = {POPULARITY: retrieve(Popularity(train).score_block, users, known, k)[0]}
    cut |= {name: _cut(*found, users, k) for name, found in lists.items()}
    figures = {name: _figures(items, relevant, users, k) for name, items in cut.items()}
    if settings.baseline not in figures:
        problem = next(one.problem for one in finished.rows if one.row.name == settings.baseline)
        raise UserError(f"the baseline '{settings.baseline}' failed: {problem}")
    vectors = finished.base / "embeddings" / VECTORS_FILE
    profiles = Profiles.load(vectors, *data.shape) if vectors.is_file() else None
    history = np.diff(train.indptr)[users]
    costs = {one.row.name: _cost(one, finished, len(data.user_ids)) for one in rows}
    table: dict[str, Any] = {}
    for name in sorted(cut, key=lambda name: -float(figures[name]["ndcg"].mean())):
        own = figures[name]
        beyond = list_figures(cut[name], train, [k], profiles)
        minus = intervals(own, figures[settings.baseline], settings.seed)
        table[name] = {
            "metrics": intervals(own, None, settings.seed),
            "minus": None if name == settings.baseline else minus,
            "beyond": {key.partition("@")[0]: value for key, value in beyond.items()},
            "slices": _slices(own, history, settings.slices),
            "leaks": any(one.row.leaks for one in rows if one.row.name == name),
            **costs.get(name, _FREE),
        }
    shared = finished.shared
    return {
        "k": k,
        "users": len(users),
        "baseline": settings.baseline,
        "slices": {f"below {below}": int((history < below).sum()) for below in settings.slices},
        "rows": table,
        "failed": {one.row.name: one.problem for one in finished.rows if one.cost is None},
        "shared": {
            "seconds": round(sum(manifest.seconds for manifest in shared.values()), 1),
            "prompt_tokens": tokens(shared, "prompt_tokens"),
            "generated_tokens": tokens(shared, "generated_tokens"),
        },
    }


def _dataset(rows: list[Done]) -> Dataset:
    """The data set of all rows.

    Raises:
        UserError: they have different ones.
    """
    first = rows[0].row
    hashes = {
        one.row.name: RunDirectory(one.row.run.out).require("data", "raysys compare").output_hash()
        for one in rows
    }
    for name, found in hashes.items():
        if found != hashes[first.name]:
            raise UserError(
                f"'{name}' has other data than '{first.name}': change [data] in `overrides`, for "
                "all rows."
            )
    return Dataset.load(first.run.out / "data", name="compare")


def _cut(found: np.ndarray, items: np.ndarray, users: np.ndarray, k: int) -> np.ndarray:
    """The lists of `users`, (n, k); short ones end with -1."""
    order = np.argsort(found)
    own = items[order[np.searchsorted(found[order], users)], :k]
    return np.pad(own, ((0, 0), (0, k - own.shape[1])), constant_values=-1)


def _figures(items: np.ndarray, relevant: csr_matrix, users: np.ndarray, k: int) -> Figures:
    counts = np.diff(relevant.indptr)[users].astype(np.int64)
    found = ranking_metrics(hit_matrix(items, relevant, users), counts, [k])
    return {name: found[f"{name}@{k}"] for name in METRICS}


def _slices(own: Figures, history: np.ndarray, bounds: tuple[int, ...]) -> dict[str, Any]:
    found = {}
    for below in bounds:
        inside = history < below
        if inside.any():
            means = {name: float(values[inside].mean()) for name, values in own.items()}
            found[f"below {below}"] = means
    return found


_FREE: dict[str, Any] = {
    "seconds": 0.0,
    "peak_gib": None,
    "tokens_per_1000_users": 0,
    "money_per_1000_users": 0.0,
}


def _cost(one: Done, finished: Finished, users: int) -> dict[str, Any]:
    """What a row took: its own stages, and of the shared ones the texts that it reads."""
    settings, cost = finished.settings, one.cost
    assert cost is not None
    read = {name: it for name, it in finished.shared.items() if name in one.row.stages}
    asked = users
    if one.row.engine:
        rerank = one.row.run.rerank
        groups = [rerank.valid_users if rerank.choose else 0, rerank.test_users, rerank.users]
        asked = sum(users if group is None else min(users, group) for group in groups)
    # A text is written for all users; a reranker may be asked for some of them.
    prompt = cost.prompt_tokens / asked + tokens(read, "prompt_tokens") / users
    written = cost.generated_tokens / asked + tokens(read, "generated_tokens") / users
    money = (prompt * settings.input_price + written * settings.output_price) / 1e6
    return {
        "seconds": cost.seconds,
        "peak_gib": cost.peak_gib,
        "tokens_per_1000_users": round((prompt + written) * 1000),
        "money_per_1000_users": money * 1000,
    }
