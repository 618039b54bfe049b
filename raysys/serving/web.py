"""The HTTP routes around a shelf: requests checked, answers kept, problems told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi import Path as UrlPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException

from raysys.observe import get_logger
from raysys.schema import ITEM_ID, RANK, RECOMMENDATIONS_FILE, SCORE, USER_ID
from raysys.serving.doors import Gate, who_is
from raysys.serving.holder import Holder, ListCache, Served
from raysys.serving.messages import (
    Answer,
    Asking,
    BatchAnswer,
    BatchEntry,
    Explain,
    Filters,
    Item,
    Model,
    Models,
    Named,
    Problem,
    Recommend,
    RecommendBatch,
    Similar,
    Status,
    Titles,
)
from raysys.serving.middleware import BodyLimit, Figures, Measured
from raysys.serving.published import served_run
from raysys.serving.reranking import Ordered, Reranker
from raysys.serving.settings import MAX_ID, MAX_K, ServeSettings
from raysys.serving.shelf import Found, Shelf, UnknownError
from raysys.store import read_table
from raysys.version import VERSION

#: Catalogues up to here are ranked in the event loop: sooner done than handed to a thread.
_SMALL = 50_000
_PROBLEM = "application/problem+json"
_NO_FILTERS = Filters()
logger = get_logger(__name__)


def web_app(
    settings: ServeSettings, keys: Mapping[str, str], gate: Gate, holder: Holder
) -> FastAPI:
    """The routes.

    Args:
        keys: digest → name; see `raysys.serving.doors.load_keys`.
        gate: how often a key may call.
        holder: the model.
    """
    figures, cache = Figures(), ListCache(settings.cache_lists, settings.cache_s)
    if settings.warm:
        _warm(cache, holder.served, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(settings, holder, cache, figures))
        yield
        watching.cancel()

    web = FastAPI(
        title="raysys",
        version=VERSION,
        summary="Recommendations from a trained run.",
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
    )
    _tell_problems(web)
    web.add_middleware(BodyLimit)
    web.add_middleware(Measured, figures=figures)

    async def check(
        response: Response, authorization: Annotated[str, Header(max_length=512)] = ""
    ) -> None:
        name = who_is(authorization.removeprefix("Bearer "), keys)
        if name is None:
            raise HTTPException(401, "send a key as `Authorization: Bearer KEY`")
        if not await gate.enter(name):
            headers = {"Retry-After": str(gate.retry_after_s)}
            raise HTTPException(429, "this key has used up its rate", headers)

    guarded = [Depends(check)]
    told: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem, "description": text}
        for code, text in {
            401: "No key, or a wrong one.",
            404: "An unknown user, item or column.",
            413: "The body is too large.",
            422: "The request is not of the right form.",
            429: "The key has used up its rate: see Retry-After.",
            501: "No language model is configured.",
        }.items()
    }

    async def answered(asked: Recommend) -> bytes:
        served = holder.served
        key = _cache_key(served, asked)
        kept = cache.get(key)
        if kept is not None:
            figures.cached.inc()
            return kept
        start = time.monotonic()
        asking = _asking(served, asked)
        ordered: Ordered = await _in_time(served.shelf, lambda: _retrieved(served, asked, asking))
        if asking is not None:
            late = start + _seconds(settings, asked) - time.monotonic()
            ordered = await asking.order(
                asked.user_id, asked.history, ordered.found, asked.rerank, late
            )
        answer = _answer(served, asked, ordered)
        figures.sources.labels(answer.source).inc()
        figures.orders.labels(_named(answer)).inc()
        found: bytes = answer.model_dump_json().encode()
        if not answer.degraded:
            cache.put(key, found)
        return found

    @web.post("/v1/recommend", response_model=Answer, responses=told, dependencies=guarded)
    async def recommend(asked: Recommend) -> Response:
        """The best items for a known user, or for someone new by what they have."""
        return _json(await answered(asked))

    @web.post(
        "/v1/recommend:batch", response_model=BatchAnswer, responses=told, dependencies=guarded
    )
    async def recommend_batch(asked: RecommendBatch) -> Response:
        """Several questions at once; one that cannot be answered does not stop the others."""
        entries = []
        for one in asked.requests:
            try:
                entries.append(b'{"answer":' + await answered(one) + b',"problem":null}')
            except UnknownError as error:
                entry = BatchEntry(problem=_problem(404, str(error)))
                entries.append(entry.model_dump_json().encode())
        return _json(b'{"entries":[' + b",".join(entries) + b"]}")

    @web.get("/v1/recommend/{user_id}", response_model=Answer, responses=told, dependencies=guarded)
    async def recommend_user(
        user_id: Annotated[str, UrlPath(max_length=MAX_ID)],
        k: Annotated[int, Query(ge=1, le=MAX_K)] = 10,
    ) -> Response:
        """The same by user and k alone, to try with curl."""
        return _json(await answered(Recommend(user_id=user_id, k=k)))

    @web.get("/v1/items", responses=told, dependencies=guarded)
    async def items(
        title: Annotated[str, Query(min_length=1, max_length=100)],
        k: Annotated[int, Query(ge=1, le=MAX_K)] = 12,
    ) -> Titles:
        """Items whose title holds some words, the most liked first."""
        shelf = holder.served.shelf
        rows = await run_in_threadpool(shelf.titled, title, k)
        named = [
            Named(item_id=shelf.dataset.item_ids[row], title=shelf.titles[row]) for row in rows
        ]
        return Titles(items=named)

    @web.get("/v1/items/{item_id}/similar", responses=told, dependencies=guarded)
    async def similar(
        item_id: Annotated[str, UrlPath(max_length=MAX_ID)],
        k: Annotated[int, Query(ge=1, le=MAX_K)] = 10,
    ) -> Similar:
        """The items that the model sees nearest to one."""
        served = holder.served
        found = await _in_time(served.shelf, lambda: served.shelf.similar(item_id, k))
        items = _items(served.shelf, found, [None] * len(found.items))
        return Similar(
            item_id=item_id, model=served.shelf.model, version=_version(served), items=items
        )

    @web.post("/v1/explain", responses=told, dependencies=guarded)
    async def explain(asked: Explain) -> Response:
        """Why items are recommended, as server-sent events: `claims` for each item, then `done`."""
        served = holder.served
        rows = [int(row) for row in served.shelf.rows(asked.item_ids)]
        if len(rows) < len(asked.item_ids):
            unknown = [one for one in asked.item_ids if not len(served.shelf.rows([one]))]
            raise UnknownError(f"no item '{unknown[0]}'")
        if served.reranker is None:
            raise HTTPException(501, "no language model is configured")
        found = served.reranker.explain(
            asked.user_id, asked.history, rows, _seconds(settings, asked)
        )
        return StreamingResponse(_events(served.shelf, found), media_type="text/event-stream")

    @web.get("/v1/models", dependencies=guarded, responses=told)
    async def models() -> Models:
        """What is served."""
        served = holder.served
        users, items = served.shelf.dataset.shape
        one = Model(name=served.shelf.model, version=_version(served), users=users, items=items)
        return Models(models=[one])

    page, policy = _page()

    @web.get("/", include_in_schema=False)
    async def home() -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    @web.get("/healthz")
    async def healthz() -> Status:
        """The process answers."""
        return Status(status="ok")

    @web.get("/readyz")
    async def readyz() -> Status:
        """A model is loaded."""
        return Status(status="ok")

    @web.get("/metrics", dependencies=guarded, include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(figures.registry), media_type="text/plain; version=0.0.4")

    return web


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


async def _in_time(shelf: Shelf, work: Callable[[], Any]) -> Any:
    """Do it here, or on a thread where it takes long enough to hold others up."""
    if len(shelf.titles) <= _SMALL:
        return work()
    return await run_in_threadpool(work)


def _asking(served: Served, asked: Recommend) -> Reranker | None:
    """What reranks this list, if it is to be."""
    if served.reranker is None:
        return None
    wanted = served.reranker.wants(asked.user_id, asked.history, asked.rerank)
    return served.reranker if wanted else None


def _seconds(settings: ServeSettings, asked: Asking) -> float:
    return settings.deadline_s if asked.deadline_ms is None else asked.deadline_ms / 1000


def _retrieved(served: Served, asked: Recommend, asking: Reranker | None) -> Ordered:
    """The list, or the pool that is to be reranked, in the retrieval's order."""
    shelf, filters = served.shelf, asked.filters
    allowed = None if filters is None else shelf.allowed(filters.exclude, filters.where)
    k = asked.k if asking is None else max(asked.k, asking.pool)
    found = shelf.recommend(asked.user_id, asked.history, k, allowed)
    unmet = asking is None and asked.rerank not in ("off", "auto")
    return Ordered(found, reason="no language model is configured" if unmet else None)


def _answer(served: Served, asked: Recommend, ordered: Ordered) -> Answer:
    shelf, found = served.shelf, ordered.found
    ranks: list[int | None] = [None] * len(found.items)
    if ordered.graph_ranks is not None:
        ranks = list(ordered.graph_ranks)
    return Answer(
        user_id=asked.user_id,
        model=shelf.model,
        version=_version(served),
        source=found.source,
        reranked=ordered.graph_ranks is not None,
        degraded=ordered.reason is not None,
        reason=ordered.reason,
        items=_items(shelf, found, ranks)[: asked.k],
    )


def _named(answer: Answer) -> str:
    if answer.degraded:
        return "degraded"
    return "reranked" if answer.reranked else "retrieved"


def _items(shelf: Shelf, found: Found, ranks: Sequence[int | None]) -> list[Item]:
    return [
        Item.model_construct(
            item_id=shelf.dataset.item_ids[row],
            title=shelf.titles[row],
            score=float(score),
            graph_rank=rank,
        )
        for row, score, rank in zip(found.items.tolist(), found.scores.tolist(), ranks, strict=True)
    ]


def _version(served: Served) -> str:
    return served.version or served.shelf.version


def _cache_key(served: Served, asked: Recommend) -> tuple[Any, ...]:
    history = () if served.shelf.knows(asked.user_id) else tuple(sorted(set(asked.history)))
    filters = asked.filters or _NO_FILTERS
    where, excluded = tuple(sorted(filters.where.items())), tuple(sorted(set(filters.exclude)))
    same = served.reranker is None and asked.rerank == "auto"
    mode = "off" if same else asked.rerank
    return (id(served), asked.user_id, history, asked.k, where, excluded, mode)


def _warm(cache: ListCache, served: Served, settings: ServeSettings) -> None:
    """Keep the run's own lists of the default length, as far as there is room."""
    _, run = served_run(settings.run)
    path = run / "recommend" / RECOMMENDATIONS_FILE
    if not path.is_file():
        return
    k = Recommend.model_fields["k"].default
    shelf = served.shelf
    lists: dict[str, list[dict[str, Any]]] = {}
    for row in read_table(path, [USER_ID, RANK, ITEM_ID, SCORE]).to_pylist():
        if row[RANK] <= k:
            lists.setdefault(row[USER_ID], []).append(row)
        if len(lists) > settings.cache_lists:
            break
    for user_id, rows in list(lists.items())[: settings.cache_lists]:
        places = shelf.rows(row[ITEM_ID] for row in rows)
        if len(rows) < k or not shelf.knows(user_id):
            continue
        scores = [row[SCORE] for row in rows]
        items = [
            Item(item_id=shelf.dataset.item_ids[place], title=shelf.titles[place], score=score)
            for place, score in zip(places.tolist(), scores, strict=True)
        ]
        answer = Answer(
            user_id=user_id,
            model=shelf.model,
            version=_version(served),
            source="model",
            items=items,
        )
        # These lists are in the retrieval's order, which `auto` may be too.
        key = _cache_key(served, Recommend(user_id=user_id, rerank="off"))
        cache.put(key, answer.model_dump_json().encode())


async def _events(shelf: Shelf, found: AsyncIterator[Any]) -> AsyncIterator[str]:
    """Reasons as server-sent events."""
    async for row, claims, evidence, source in found:
        reasons = [
            {"text": claim.text, "because": [evidence[key] for key in claim.because]}
            for claim in claims
        ]
        item_id = shelf.dataset.item_ids[row]
        value = {"item_id": item_id, "source": source, "reasons": reasons}
        yield f"event: claims\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"
    yield "event: done\ndata: {}\n\n"


def _page() -> tuple[str, str]:
    """The page, and a policy that lets its own script and style run and nothing else."""
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    marks = {}
    for name in ("script", "style"):
        inside = text.split(f"<{name}>")[1].split(f"</{name}>")[0]
        marks[name] = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{marks['script']}'; "
        f"style-src 'sha256-{marks['style']}'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


async def _watch(
    settings: ServeSettings, holder: Holder, cache: ListCache, figures: Figures
) -> None:
    """Look for a newly published model until cancelled."""
    while True:
        await asyncio.sleep(settings.watch_s)
        if await run_in_threadpool(holder.look):
            figures.swapped.inc()
            if settings.warm:
                await run_in_threadpool(_warm, cache, holder.served, settings)


def _problem(status: int, detail: str) -> Problem:
    from http import HTTPStatus

    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)


def _told(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    content = _problem(status, detail).model_dump()
    return JSONResponse(content, status, dict(headers or {}), media_type=_PROBLEM)


def _tell_problems(web: FastAPI) -> None:
    """Every error as problem+json, without anything of our inside."""

    @web.exception_handler(AnyHTTPException)
    async def http(_: Request, error: AnyHTTPException) -> JSONResponse:
        return _told(error.status_code, str(error.detail), error.headers)

    @web.exception_handler(RequestValidationError)
    async def form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return _told(422, f"{place}: {first['msg']}"[:500])

    @web.exception_handler(UnknownError)
    async def unknown(_: Request, error: UnknownError) -> JSONResponse:
        return _told(404, str(error)[:500])

    @web.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> JSONResponse:
        logger.exception("a request failed", exc_info=error)
        return _told(500, "a fault of ours; it is in the log")
