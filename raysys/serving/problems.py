"""Problems as callers get them: RFC 9457, `application/problem+json`, nothing of our inside."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from raysys.observe import get_logger
from raysys.serving.messages import Problem
from raysys.serving.shelf import UnknownError

logger = get_logger(__name__)
_PROBLEM = "application/problem+json"
_LONGEST = 500
#: What the documentation says of each status that a guarded route may answer.
_DOCUMENTED = {
    400: "The body is no text.",
    401: "No key, or a wrong one.",
    404: "An unknown user, item or column.",
    413: "The body is too large.",
    422: "The request is not of the right form.",
    429: "The key has used up its rate: see Retry-After.",
    501: "No language model is configured.",
    503: "Too many are waiting: see Retry-After.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: the problems it may answer beside the usual ones."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {
        status: {"description": _DOCUMENTED[status], "content": {_PROBLEM: {"schema": schema}}}
        for status in (400, 401, 413, 422, 429, 503, *statuses)
    }


def problem(status: int, detail: str) -> Problem:
    """What went wrong."""
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail[:_LONGEST])


def told(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A problem as an answer."""
    content = problem(status, detail).model_dump()
    return JSONResponse(content, status, dict(headers or {}), media_type=_PROBLEM)


def tell_problems(web: FastAPI) -> None:
    """Every error of the routes as a problem."""

    @web.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return told(error.status_code, str(error.detail), error.headers)

    @web.exception_handler(RequestValidationError)
    async def form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return told(422, f"{place}: {first['msg']}")

    @web.exception_handler(UnknownError)
    async def unknown(_: Request, error: UnknownError) -> JSONResponse:
        return told(404, str(error))

    @web.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> JSONResponse:
        logger.exception("a request failed", exc_info=error)
        return told(500, "a fault of ours; it is in the log")
