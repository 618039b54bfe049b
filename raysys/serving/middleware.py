"""What every request goes through: a limit on its body, and figures of what came of it."""

from __future__ import annotations

import json
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from raysys.serving.settings import MAX_BODY_BYTES


class BodyLimit:
    """ASGI middleware: 413 for a body of more than `MAX_BODY_BYTES`, said or sent."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > MAX_BODY_BYTES:
            await _refuse(send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                await _refuse(send)
                return
            more = message.get("more_body", False)
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


async def _refuse(send: Any) -> None:
    detail = f"a body may have {MAX_BODY_BYTES} bytes"
    problem = {
        "type": "about:blank",
        "title": "Content Too Large",
        "status": 413,
        "detail": detail,
    }
    headers = [(b"content-type", b"application/problem+json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(problem).encode()})


class Figures:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "status")
        self.requests = Counter("raysys_requests", "Requests.", labels, registry=self.registry)
        self.seconds = Histogram(
            "raysys_request_seconds",
            "Seconds from request to answer.",
            ("route",),
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.sources = Counter(
            "raysys_lists", "Lists by how they came about.", ("source",), registry=self.registry
        )
        self.orders = Counter(
            "raysys_orders",
            "Lists by whose order they are in: retrieved, reranked, degraded.",
            ("order",),
            registry=self.registry,
        )
        self.cached = Counter("raysys_cached_lists", "Lists from memory.", registry=self.registry)
        self.swapped = Counter("raysys_model_swaps", "Models swapped in.", registry=self.registry)
        self.open = Gauge("raysys_open_requests", "Requests at work.", registry=self.registry)


class Measured:
    """ASGI middleware: count and time each request by its route, never by what its path says."""

    def __init__(self, app: Any, figures: Figures) -> None:
        self._app, self._figures = app, figures

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._figures.open.inc()
        try:
            await self._app(scope, receive, noted)
        finally:
            self._figures.open.dec()
            route = getattr(scope.get("route"), "path", "unknown")
            self._figures.requests.labels(route, str(status)).inc()
            self._figures.seconds.labels(route).observe(time.perf_counter() - start)
