"""The HTTP routes around a shelf."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as UrlPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.routing import request_response

from raysys.serving.answers import Answers, in_time, items_of, reasons_of
from raysys.serving.doors import Gate
from raysys.serving.holder import Holder
from raysys.serving.messages import (
    Answer,
    BatchAnswer,
    BatchEntry,
    Explain,
    Length,
    Model,
    Models,
    Named,
    Recommend,
    RecommendBatch,
    Search,
    Similar,
    Status,
    Titles,
)
from raysys.serving.middleware import OPEN_PATHS, BodyLimit, Door, Figures, Measured
from raysys.serving.problems import documented, problem, tell_problems
from raysys.serving.reranking import Reasons
from raysys.serving.settings import MAX_ID, ServeSettings
from raysys.serving.shelf import Shelf, UnknownError
from raysys.version import VERSION

_Asked = TypeVar("_Asked", bound=BaseModel)


def web_app(
    settings: ServeSettings, keys: Mapping[str, str], gate: Gate, holder: Holder
) -> FastAPI:
    """The routes.

    Args:
        keys: digest → name; see `raysys.serving.doors.load_keys`.
        gate: how often a key may call.
        holder: the model.
    """
    figures = Figures()
    figures.rerank_limit.set_function(lambda: holder.limit.limit)
    answers = Answers(settings, holder, figures)
    if settings.warm:
        answers.warm()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(settings, holder, answers, figures))
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
    tell_problems(web)
    # The last one added sees a request first.
    web.add_middleware(BodyLimit)
    web.add_middleware(Door, keys=keys, gate=gate)
    web.add_middleware(Measured, figures=figures)

    @web.post("/v1/recommend", response_model=Answer, responses=documented(404))
    async def recommend(asked: Recommend) -> Response:
        """The best items for a known user, or for someone new by what they have."""
        return _json(await answers.answer(asked))

    @web.post("/v1/recommend:batch", response_model=BatchAnswer, responses=documented())
    async def recommend_batch(asked: RecommendBatch) -> Response:
        """Several questions at once; one that cannot be answered does not stop the others."""
        entries = []
        for one in asked.requests:
            try:
                entries.append(b'{"answer":' + await answers.answer(one) + b',"problem":null}')
            except UnknownError as error:
                entry = BatchEntry(problem=problem(404, str(error)))
                entries.append(entry.model_dump_json().encode())
        return _json(b'{"entries":[' + b",".join(entries) + b"]}")

    @web.get("/v1/recommend/{user_id}", response_model=Answer, responses=documented())
    async def recommend_user(
        user_id: Annotated[str, UrlPath(min_length=1, max_length=MAX_ID)],
        wanted: Annotated[Length, Query()],
    ) -> Response:
        """The same by user and k alone, to try with curl."""
        return _json(await answers.answer(Recommend(user_id=user_id, k=wanted.k)))

    @web.get("/v1/items", responses=documented())
    async def items(wanted: Annotated[Search, Query()]) -> Titles:
        """Items whose title holds some words, the most liked first."""
        shelf = holder.served.shelf
        rows = await run_in_threadpool(shelf.titled, wanted.title, wanted.k)
        named = [
            Named(item_id=shelf.dataset.item_ids[row], title=shelf.titles[row]) for row in rows
        ]
        return Titles(items=named)

    @web.get("/v1/items/{item_id}/similar", responses=documented(404))
    async def similar(
        item_id: Annotated[str, UrlPath(min_length=1, max_length=MAX_ID)],
        wanted: Annotated[Length, Query()],
    ) -> Similar:
        """The items that the model sees nearest to one."""
        served = holder.served
        found = await in_time(served.shelf, lambda: served.shelf.similar(item_id, wanted.k))
        items = items_of(served.shelf, found, [None] * len(found.items))
        return Similar(item_id=item_id, model=served.shelf.model, version=served.named, items=items)

    stream: dict[int | str, dict[str, Any]] = {
        200: {"description": "Reasons.", "content": {"text/event-stream": {}}}
    }

    @web.post(
        "/v1/explain",
        response_class=StreamingResponse,
        responses={**documented(404, 501), **stream},
    )
    async def explain(asked: Explain) -> Response:
        """Why items are recommended, as server-sent events.

        `claim`: a reason, as soon as it is written. `claims`: all that are kept of an item.
        `done`: it is the end.
        """
        served = holder.served
        rows = [int(row) for row in served.shelf.rows(asked.item_ids)]
        if len(rows) < len(asked.item_ids):
            unknown = [one for one in asked.item_ids if not len(served.shelf.rows([one]))]
            raise UnknownError(f"no item '{unknown[0]}'")
        if served.reranker is None:
            raise HTTPException(501, "no language model is configured")
        found = served.reranker.explain(asked.user_id, asked.history, rows, answers.seconds(asked))
        return StreamingResponse(_events(served.shelf, found), media_type="text/event-stream")

    @web.get("/v1/models", responses=documented())
    async def models() -> Models:
        """What is served."""
        served = holder.served
        users, items = served.shelf.dataset.shape
        one = Model(name=served.shelf.model, version=served.named, users=users, items=items)
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

    @web.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(figures.registry), media_type="text/plain; version=0.0.4")

    _read_directly(web, "/v1/recommend", Recommend, recommend)
    _read_directly(web, "/v1/recommend:batch", RecommendBatch, recommend_batch)
    _tell_of_keys(web)
    return web


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _read_directly(
    web: FastAPI, path: str, model: type[_Asked], answer: Callable[[_Asked], Awaitable[Response]]
) -> None:
    """Read a route's body without FastAPI, which goes on documenting it.

    What FastAPI does between body and function is a third of the time of a list from memory.
    """

    async def read(request: Request) -> Response:
        try:
            asked = model.model_validate_json(await request.body())
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
            told = [{**one, "loc": ("body", *one["loc"])} for one in found]
            raise RequestValidationError(told) from None
        return await answer(asked)

    (route,) = (one for one in web.routes if isinstance(one, APIRoute) and one.path == path)
    route.app = request_response(read)


def _tell_of_keys(web: FastAPI) -> None:
    """Say in the documentation which paths want a key; the door itself is a middleware."""
    plain = web.openapi

    def document() -> dict[str, Any]:
        found = plain()
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
        for path in OPEN_PATHS & set(found["paths"]):
            for operation in found["paths"][path].values():
                operation["security"] = []
        return found

    web.openapi = document  # type: ignore[method-assign]


async def _events(shelf: Shelf, found: AsyncGenerator[Reasons]) -> AsyncIterator[str]:
    """Reasons as server-sent events."""
    async with aclosing(found):
        async for one in found:
            reasons = [reason.model_dump() for reason in reasons_of(one)]
            value: dict[str, Any] = {"item_id": shelf.dataset.item_ids[one.row]}
            if one.source is None:
                events = [("claim", value | reason) for reason in reasons]
            else:
                events = [("claims", value | {"source": one.source, "reasons": reasons})]
            for name, data in events:
                yield f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
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
    settings: ServeSettings, holder: Holder, answers: Answers, figures: Figures
) -> None:
    """Look for a newly published model until cancelled."""
    while True:
        await asyncio.sleep(settings.watch_s)
        if await run_in_threadpool(holder.look):
            figures.swapped.inc()
            if settings.warm:
                await run_in_threadpool(answers.warm)
