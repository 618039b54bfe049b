"""From a question to its answer: kept lists, retrieval, reranking, and how the list is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool

from raysys.schema import ITEM_ID, RANK, RECOMMENDATIONS_FILE, SCORE, USER_ID
from raysys.serving.holder import Holder, ListCache, Served
from raysys.serving.messages import Answer, Asking, Filters, Item, Reason, Recommend
from raysys.serving.middleware import Figures
from raysys.serving.published import served_run
from raysys.serving.reranking import Ordered, Reasons, Reranker
from raysys.serving.settings import ServeSettings
from raysys.serving.shelf import Found, Shelf
from raysys.store import read_table

#: Catalogues up to here are ranked in the event loop: sooner done than handed to a thread.
_SMALL = 50_000
_NO_FILTERS = Filters()


class Answers:
    """Answers questions from what is served now.

    Args:
        settings: deadline and cache.
        holder: the model.
        figures: what Prometheus reads of it.
    """

    def __init__(self, settings: ServeSettings, holder: Holder, figures: Figures) -> None:
        self._settings, self._holder, self._figures = settings, holder, figures
        self._cache = ListCache(settings.cache_lists, settings.cache_s)

    async def answer(self, asked: Recommend) -> bytes:
        """An `Answer` as JSON.

        Raises:
            UnknownError: a filter names a column that items do not have.
        """
        served = self._holder.served
        key = _cache_key(served, asked)
        kept = self._cache.get(key)
        if kept is not None:
            self._figures.cached.inc()
            return kept
        start = time.monotonic()
        asking = _asking(served, asked)
        ordered: Ordered = await in_time(served.shelf, lambda: _retrieved(served, asked, asking))
        if asking is not None:
            late = start + self.seconds(asked) - time.monotonic()
            ordered = await asking.order(
                asked.user_id, asked.history, ordered.found, asked.rerank, late
            )
        answer = _answer(served, asked, ordered)
        whole = not answer.degraded
        if asked.explain and served.reranker is not None:
            left = start + self.seconds(asked) - time.monotonic()
            explained = await _explain(served.shelf, served.reranker, asked, answer.items, left)
            whole = whole and explained
        self._figures.sources.labels(answer.source).inc()
        self._figures.orders.labels(_named(answer)).inc()
        found: bytes = answer.model_dump_json().encode()
        if whole:
            self._cache.put(key, found)
        return found

    def seconds(self, asked: Asking) -> float:
        """How long the language model may take: as the caller says, or as is set."""
        given = asked.deadline_ms
        return self._settings.deadline_s if given is None else given / 1000

    def warm(self) -> None:
        """Keep the run's own lists of the default length, as far as there is room."""
        served, most = self._holder.served, self._settings.cache_lists
        _, run = served_run(self._settings.run)
        path = run / "recommend" / RECOMMENDATIONS_FILE
        if not path.is_file():
            return
        k = Recommend.model_fields["k"].default
        shelf = served.shelf
        lists: dict[str, list[dict[str, Any]]] = {}
        for row in read_table(path, [USER_ID, RANK, ITEM_ID, SCORE]).to_pylist():
            if row[RANK] <= k:
                lists.setdefault(row[USER_ID], []).append(row)
            if len(lists) > most:
                break
        for user_id, rows in list(lists.items())[:most]:
            places = shelf.rows(row[ITEM_ID] for row in rows)
            if len(rows) < k or not shelf.knows(user_id):
                continue
            found = Found(places, np.array([row[SCORE] for row in rows]), "model")
            # These lists are in the retrieval's order, which `auto` may be too.
            asked = Recommend(user_id=user_id, rerank="off")
            answer = _answer(served, asked, Ordered(found))
            self._cache.put(_cache_key(served, asked), answer.model_dump_json().encode())


async def in_time(shelf: Shelf, work: Callable[[], Any]) -> Any:
    """Do it here, or on a thread where it takes long enough to hold others up."""
    if len(shelf.titles) <= _SMALL:
        return work()
    return await run_in_threadpool(work)


def items_of(shelf: Shelf, found: Found, ranks: Sequence[int | None]) -> list[Item]:
    """A list as it is told.

    Args:
        ranks: (k,) places before it was reranked.
    """
    return [
        Item.model_construct(
            item_id=shelf.dataset.item_ids[row],
            title=shelf.titles[row],
            score=float(score),
            graph_rank=rank,
            reasons=None,
        )
        for row, score, rank in zip(found.items.tolist(), found.scores.tolist(), ranks, strict=True)
    ]


def _asking(served: Served, asked: Recommend) -> Reranker | None:
    """What reranks this list, if it is to be."""
    if served.reranker is None:
        return None
    wanted = served.reranker.wants(asked.user_id, asked.history, asked.rerank)
    return served.reranker if wanted else None


def _retrieved(served: Served, asked: Recommend, asking: Reranker | None) -> Ordered:
    """The list, or the pool that is to be reranked, in the retrieval's order."""
    shelf, filters = served.shelf, asked.filters
    allowed = None if filters is None else shelf.allowed(filters.exclude, filters.where)
    k = asked.k if asking is None else max(asked.k, asking.pool)
    found = shelf.recommend(asked.user_id, asked.history, k, allowed)
    wants = asked.rerank not in ("off", "auto") or asked.explain
    unmet = wants and served.reranker is None
    return Ordered(found, reason="no language model is configured" if unmet else None)


async def _explain(
    shelf: Shelf, reranker: Reranker, asked: Recommend, items: list[Item], seconds: float
) -> bool:
    """Put reasons to the first items; whether none came too late and is a template's."""
    first = items[: reranker.explained]
    rows = shelf.rows(item.item_id for item in first).tolist()
    by_row = dict(zip(rows, first, strict=True))
    whole = True
    async with aclosing(reranker.explain(asked.user_id, asked.history, rows, seconds)) as found:
        async for one in found:
            if one.source is not None:
                by_row[one.row].reasons = reasons_of(one)
                whole = whole and one.source == "llm"
    return whole


def reasons_of(found: Reasons) -> list[Reason]:
    """Reasons with what they rest on, as they are told."""
    return [
        Reason(text=claim.text, because=[found.evidence[key] for key in claim.because])
        for claim in found.claims
    ]


def _answer(served: Served, asked: Recommend, ordered: Ordered) -> Answer:
    shelf, found = served.shelf, ordered.found
    ranks: list[int | None] = [None] * len(found.items)
    if ordered.graph_ranks is not None:
        ranks = list(ordered.graph_ranks)
    return Answer.model_construct(
        user_id=asked.user_id,
        model=shelf.model,
        version=served.named,
        source=found.source,
        reranked=ordered.graph_ranks is not None,
        degraded=ordered.reason is not None,
        reason=ordered.reason,
        items=items_of(shelf, found, ranks)[: asked.k],
    )


def _named(answer: Answer) -> str:
    if answer.degraded:
        return "degraded"
    return "reranked" if answer.reranked else "retrieved"


def _cache_key(served: Served, asked: Recommend) -> tuple[Any, ...]:
    history = () if served.shelf.knows(asked.user_id) else tuple(sorted(set(asked.history)))
    filters = asked.filters or _NO_FILTERS
    where, excluded = tuple(sorted(filters.where.items())), tuple(sorted(set(filters.exclude)))
    same = served.reranker is None and asked.rerank == "auto"
    mode = "off" if same else asked.rerank
    return (id(served), asked.user_id, history, asked.k, where, excluded, mode, asked.explain)
