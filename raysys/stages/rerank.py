"""Stage `rerank`: a language model reorders pools, where validation says that it helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix

from raysys.data.candidates import drawn_users
from raysys.evaluation.kept_lists import write_test_lists
from raysys.evaluation.metrics import hit_matrix, paired_bootstrap, ranking_metrics
from raysys.manifest import Manifest, StageReport
from raysys.models.saved import load_model
from raysys.ranking.fuse import fuse, min_max, order_of
from raysys.ranking.retrieve import NO_ITEM, retrieve
from raysys.schema import (
    ITEM_ID,
    RANK,
    RECOMMENDATIONS_FILE,
    RERANKED_SCHEMA,
    SPLITS,
    TEST,
    TITLE,
    TRAIN,
    USER_ID,
    VALID,
)
from raysys.stages.context import RunContext
from raysys.stages.profiles import text_config
from raysys.stages.told import Told, profile_stages, told_of
from raysys.stages.train import best_model
from raysys.store import write_json, write_table
from raysys.text.rerank import Pool, Reranked, RerankSettings, rerank
from raysys.text.stage import writing
from raysys.text.writing import Writer
from raysys.training.loop import mixed_seed

RERANK = "rerank"
CHOICE_FILE, METRICS_FILE = "choice.json", "metrics.json"
_EXPLAIN_ONLY = {"explain_items", "claims", "claim_characters"}
_WATCHED = "ndcg"


@dataclass(frozen=True)
class Choice:
    """When and how much the language model is listened to; weight 0: not at all."""

    weight: float
    below: int | None

    def reaches(self, likes: int) -> bool:
        """Whether the list of a user with so many likes in train is reranked."""
        return self.weight > 0 and (self.below is None or likes < self.below)


#: Everybody is asked about, to see afterwards whom it helps.
_EVERYBODY = Choice(1.0, None)


@dataclass(frozen=True)
class Pools:
    """The pools of some users, and what the language model made of them.

    Attributes:
        users: (n,) user rows.
        items: (n, pool) item rows in the graph's order, -1 beyond the end.
        scores: (n, pool) the graph's.
        found: n results.
    """

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    found: list[Reranked]


def run_rerank(context: RunContext) -> tuple[Manifest, bool]:
    """Rerank into `RUN/rerank`: lists, what was chosen on validation, figures on test."""
    settings = context.settings.rerank
    return context.run.run_stage(
        RERANK,
        text_config(settings, _EXPLAIN_ONLY, settings.prompts().mark()),
        ["data", "train", context.trained, *profile_stages(context)],
        lambda output: _rerank(context, output),
    )


def _rerank(context: RunContext, output: Path) -> StageReport:
    settings, dataset = context.settings.rerank, context.dataset
    prompts = settings.prompts()
    told = told_of(context)
    with writing(
        RERANK, settings, prompts, context.settings.cluster, context.resources, output
    ) as writer:

        def ask(
            models: str,
            limit: int | None,
            known: csr_matrix,
            wanted: csr_matrix | None,
            choice: Choice,
        ) -> Pools:
            return _ask(context, told, writer, models, limit, known, wanted, choice)

        choice, chosen = Choice(settings.weight, settings.below), {}
        if settings.choose:
            known, wanted = dataset.matrix(TRAIN, opinion=None), dataset.matrix(VALID)
            choice, tried = choose(
                settings,
                ask("train", settings.valid_users, known, wanted, _EVERYBODY),
                wanted,
                told,
            )
            write_json(output / CHOICE_FILE, {**asdict(choice), "tried": tried})
            best = max(row[f"{_WATCHED}@{settings.k}"] for row in tried)
            chosen = {f"validation_{_WATCHED}@{settings.k}": best}
        if settings.test_users != 0:
            known, wanted = dataset.matrix(TRAIN, VALID, opinion=None), dataset.matrix(TEST)
            pools = ask(context.trained, settings.test_users, known, wanted, choice)
            write_json(output / METRICS_FILE, _measure(settings, pools, wanted, told, choice))
            write_test_lists(output, pools.users, {RERANK: _lists(settings, pools, choice, told)})
        known = dataset.matrix(*SPLITS, opinion=None)
        pools = ask(context.trained, settings.users, known, None, choice)
        asked, counts = writer.asked, writer.counts
    table, empty = _table(context, pools, told, choice)
    write_table(output / RECOMMENDATIONS_FILE, table)
    problems = Counter(found.problem.reason for found in pools.found if found.problem)
    return StageReport(
        counts={
            "in": len(pools.users),
            "ok": len(pools.users) - empty,
            "dead_letter": empty,
            "rows": table.num_rows,
            "degraded": sum(problems.values()),
        },
        dropped={"all_items_seen": empty} if empty else {},
        figures={
            **chosen,
            "weight": choice.weight,
            "calls": float(asked.generated),
            "cached_calls": float(asked.cached),
            "cached_prompt_tokens": float(asked.cached_prompt_tokens),
            "cached_generated_tokens": float(asked.cached_generated_tokens),
            "prompt_tokens": float(asked.prompt_tokens),
            "generated_tokens": float(asked.generated_tokens),
            "seconds": round(asked.seconds, 1),
            "valid_at_once": round(counts.valid_at_once / max(1, counts.replies), 4),
            "repaired": float(counts.repaired),
            **{f"degraded_{reason}": float(count) for reason, count in problems.items()},
        },
    )


def _ask(
    context: RunContext,
    told: Told,
    writer: Writer,
    models: str,
    limit: int | None,
    known: csr_matrix,
    wanted: csr_matrix | None,
    choice: Choice,
) -> Pools:
    """Pools of drawn users (with a relevant item, where `wanted` is given), and their scores.

    Nothing is asked, or paid, for users whose list `choice` leaves as it is.
    """
    settings = context.settings.rerank
    model = best_model(context) if settings.model == "best" else settings.model
    scorer = load_model(context.run.path(models) / model).score_block
    users = np.arange(known.shape[0]) if wanted is None else np.flatnonzero(np.diff(wanted.indptr))
    users = users[drawn_users(len(users), limit, settings.seed)]
    items, scores = retrieve(scorer, users, known, settings.pool)
    pools = {
        str(row): Pool(
            told.of(user),
            [told.items[item] for item in items[row] if item != NO_ITEM],
            # By user, not by place: who else is drawn does not matter.
            mixed_seed(settings.seed, user),
        )
        for row, user in enumerate(users.tolist())
        if choice.reaches(len(told.likes[user]))
    }
    found = rerank(writer, settings.prompts(), pools, settings.method)
    unasked = Reranked()
    return Pools(users, items, scores, [found.get(str(row), unasked) for row in range(len(users))])


def orders(
    settings: RerankSettings, pools: Pools, choice: Choice, likes: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Each user's pool in its final order, (n, pool) places and fused scores; -1 and 0 beyond.

    Who is not reached by `choice`, or degraded, keeps the graph's order.
    """
    places = np.full(pools.items.shape, NO_ITEM, dtype=np.int64)
    fused = np.zeros(pools.items.shape)
    for row, user in enumerate(pools.users.tolist()):
        size = int((pools.items[row] != NO_ITEM).sum())
        graph, llm = pools.scores[row, :size].astype(np.float64), pools.found[row].scores
        if llm is None or not choice.reaches(len(likes[user])):
            places[row, :size], fused[row, :size] = np.arange(size), min_max(graph)
            continue
        both = fuse(llm, graph, choice.weight)
        order = order_of(both, settings.max_rank_shift)
        places[row, :size], fused[row, :size] = order, both[order]
    return places, fused


def choose(
    settings: RerankSettings, pools: Pools, wanted: csr_matrix, told: Told
) -> tuple[Choice, list[dict[str, Any]]]:
    """The weight and segment with the best NDCG@k on validation; weight 0 wins a draw."""
    tried = []
    best, best_figure = Choice(0.0, None), -1.0
    for choice in [
        best,
        *(Choice(weight, below) for below in settings.belows for weight in settings.weights),
    ]:
        figure = float(_figures(settings, pools, wanted, told, choice)[_WATCHED].mean())
        tried.append({**asdict(choice), f"{_WATCHED}@{settings.k}": figure})
        if figure > best_figure:
            best, best_figure = choice, figure
    return best, tried


def _figures(
    settings: RerankSettings, pools: Pools, wanted: csr_matrix, told: Told, choice: Choice
) -> dict[str, np.ndarray]:
    """Each metric at k for every user, in the order of `choice`."""
    items = _lists(settings, pools, choice, told)[:, : settings.k]
    relevant = np.diff(wanted.indptr)[pools.users].astype(np.int64)
    hits = hit_matrix(items, wanted, pools.users)
    return {
        name.partition("@")[0]: values
        for name, values in ranking_metrics(hits, relevant, [settings.k]).items()
    }


def _lists(settings: RerankSettings, pools: Pools, choice: Choice, told: Told) -> np.ndarray:
    """Each user's whole pool in its final order, (n, pool) item rows."""
    places, _ = orders(settings, pools, choice, told.likes)
    items = np.take_along_axis(pools.items, np.maximum(places, 0), axis=1)
    return np.where(places == NO_ITEM, NO_ITEM, items)


def _measure(
    settings: RerankSettings, pools: Pools, wanted: csr_matrix, told: Told, choice: Choice
) -> dict[str, Any]:
    """Graph order against reranked, all and by segment, with paired bootstrap intervals."""
    graph = _figures(settings, pools, wanted, told, Choice(0.0, None))
    ours = _figures(settings, pools, wanted, told, choice)
    sizes = np.array([len(told.likes[user]) for user in pools.users.tolist()])
    segments = {"all": np.ones(len(sizes), dtype=bool)}
    segments |= {f"below {below}": sizes < below for below in settings.belows if below is not None}
    return {
        "k": settings.k,
        "choice": asdict(choice),
        "degraded": sum(found.problem is not None for found in pools.found),
        "segments": {
            name: {
                "users": int(inside.sum()),
                "graph": {key: float(values[inside].mean()) for key, values in graph.items()},
                "reranked": {key: float(values[inside].mean()) for key, values in ours.items()},
                "difference": {
                    key: paired_bootstrap(
                        values[inside], graph[key][inside], settings.seed
                    )._asdict()
                    for key, values in ours.items()
                },
            }
            for name, inside in segments.items()
            if inside.any()
        },
    }


def _table(context: RunContext, pools: Pools, told: Told, choice: Choice) -> tuple[pa.Table, int]:
    """The lists, and how many users have none."""
    dataset, settings = context.dataset, context.settings.rerank
    places, fused = orders(settings, pools, choice, told.likes)
    titles = dataset.items[TITLE].to_pylist()
    rows = []
    for row, user in enumerate(pools.users.tolist()):
        degraded, llm = pools.found[row].problem is not None, pools.found[row].scores
        for rank, place in enumerate(places[row, : settings.k].tolist(), start=1):
            if place == NO_ITEM:
                break
            item = int(pools.items[row, place])
            rows.append(
                {
                    USER_ID: dataset.user_ids[user],
                    RANK: rank,
                    ITEM_ID: dataset.item_ids[item],
                    "score": float(fused[row, rank - 1]),
                    TITLE: titles[item],
                    "graph_rank": place + 1,
                    "llm_score": None if llm is None else float(llm[place]),
                    "degraded": degraded,
                }
            )
    empty = int((places == NO_ITEM).all(axis=1).sum())
    return pa.Table.from_pylist(rows, schema=RERANKED_SCHEMA), empty
