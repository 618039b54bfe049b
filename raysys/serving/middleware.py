"""What every request goes through: figures, the door, and a limit on its body."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from raysys.serving.doors import Gate, who_is
from raysys.serving.problems import told
from raysys.serving.settings import MAX_BODY_BYTES

#: Paths that answer without a key; every other one, known or not, wants it.
OPEN_PATHS = frozenset(["/", "/docs", "/openapi.json", "/healthz", "/readyz"])
_LONGEST_HEADER = 512


class Door:
    """ASGI middleware: 401 without a key that is known, 429 where it has used up its rate.

    Args:
        keys: digest → name; see `raysys.serving.doors.load_keys`.
        gate: how often a key may call.
    """

    def __init__(self, app: Any, keys: Mapping[str, str], gate: Gate) -> None:
        self._app, self._keys, self._gate = app, keys, gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        # Behind a route prefix, the server says which part of the path that is.
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        key = given[:_LONGEST_HEADER].decode("latin-1").removeprefix("Bearer ")
        name = who_is(key, self._keys)
        if name is None:
            refused = told(401, "send a key as `Authorization: Bearer KEY`")
            await refused(scope, receive, send)
        elif await self._gate.enter(name):
            await self._app(scope, receive, send)
        else:
            wait = {"Retry-After": str(self._gate.retry_after_s)}
            await told(429, "this key has used up its rate", wait)(scope, receive, send)


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
            await _TOO_LARGE(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                await _TOO_LARGE(scope, receive, send)
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


_TOO_LARGE = told(413, f"a body may have {MAX_BODY_BYTES} bytes", {"Connection": "close"})


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
        self.rerank_limit = Gauge(
            "raysys_rerank_limit",
            "Lists that the language model is asked for at once.",
            registry=self.registry,
        )
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
