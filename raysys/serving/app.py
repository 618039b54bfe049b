"""The endpoint as a Ray Serve application: a typed builder, and how it is started on loopback."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI

from raysys.serving.doors import Allowances, Gate, digest_of, load_keys
from raysys.serving.holder import Holder
from raysys.serving.profiles import DeploymentSettings, Profile
from raysys.serving.published import served_run
from raysys.serving.settings import ServeSettings
from raysys.serving.shelf import Shelf
from raysys.serving.web import web_app
from raysys.text.engine_vllm_online import OnlineVllm
from raysys.text.online import online_model

NAME, INGRESS, RATES, LANGUAGE_MODEL = "raysys", "Ingress", "Rates", "LanguageModel"


def application(
    settings: ServeSettings,
    keys: dict[str, str] | None = None,
    deployments: Sequence[DeploymentSettings] = (),
) -> Any:
    """The Serve application: routes and retrieval in one deployment, rates in another.

    Args:
        settings: see `ServeSettings`.
        keys: digest → name; none: those of `settings.doors`.
        deployments: what differs from the defaults, as in a profile.

    Raises:
        UserError: no model can be served, or there is no key.
    """
    from ray import serve
    from ray.serve.config import BackpressureConfig

    _, run = served_run(settings.run)
    Shelf(run)  # A broken run is a clear error here, not a replica that never starts.
    if keys is None:
        keys, _ = load_keys(settings.doors.key_file)
    known = dict(keys)

    @serve.deployment(
        name=RATES,
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
    )
    class Rates:
        """The token buckets of all keys."""

        def __init__(self) -> None:
            _replica_on_loopback()
            doors = settings.doors
            self._allowances = Allowances(doors.requests_per_second, doors.burst)

        async def lease(self, name: str, wanted: int) -> int:
            """See `Allowances.lease`."""
            return self._allowances.lease(name, wanted)

        def check_health(self) -> None:
            """The process answers."""

    def build() -> FastAPI:
        _replica_on_loopback()
        rates = serve.get_deployment_handle(RATES, NAME)

        async def lease(name: str, wanted: int) -> int:
            given: int = await rates.lease.remote(name, wanted)
            return given

        doors = settings.doors
        gate = Gate(lease, doors.requests_per_second, doors.burst)
        if settings.rerank is None:
            return web_app(settings, known, gate, Holder(settings))
        remote = _Remote(serve.get_deployment_handle(LANGUAGE_MODEL, NAME))
        return web_app(settings, known, gate, Holder(settings, remote))

    here = settings.rerank is not None and settings.rerank.engine.kind == "vllm"

    @serve.deployment(
        name=LANGUAGE_MODEL,
        # An engine of its own takes what the profile gives it (num_gpus), here a core.
        ray_actor_options={"num_cpus": 1 if here else 0.1},
        max_ongoing_requests=64,
        # A question that would wait too long is refused at once, and its list is degraded.
        max_queued_requests=128,
    )
    class LanguageModel:
        """Asks the endpoint, or holds the engine; stops with the request that asked."""

        def __init__(self) -> None:
            _replica_on_loopback()
            assert settings.rerank is not None
            self._model = online_model(settings.rerank.engine, settings.rerank.sampling)

        async def answer(self, row: dict[str, Any]) -> dict[str, Any]:
            """See `Online.answer`."""
            return await self._model.answer(row)

        async def pieces(self, row: dict[str, Any]) -> AsyncGenerator[str]:
            """See `Online.pieces`."""
            async with aclosing(self._model.pieces(row)) as pieces:
                async for piece in pieces:
                    yield piece

        async def check_health(self) -> None:
            """An engine of ours lives. An endpoint may be away: lists are degraded then."""
            if isinstance(self._model, OnlineVllm):
                await self._model.check_health()

    @serve.deployment(
        name=INGRESS,
        ray_actor_options={"num_cpus": 0.5},
        # What one replica works on, and what may wait for it; more is answered with 503.
        max_ongoing_requests=64,
        max_queued_requests=256,
        backpressure_config=BackpressureConfig(retry_after_s=1.0),
    )
    @serve.ingress(build)
    class Ingress:
        """Serve's shell around the routes."""

        def __init__(self, *others: Any) -> None:
            self._others = others

        def check_health(self) -> None:
            """The process answers; the model was checked when it was loaded."""

    bound: dict[str, Any] = {INGRESS: Ingress, RATES: Rates, LANGUAGE_MODEL: LanguageModel}
    for one in deployments:
        bound[one.name] = bound[one.name].options(**one.options())
    others = [bound[RATES].bind()]
    if settings.rerank is not None:
        others.append(bound[LANGUAGE_MODEL].bind())
    return bound[INGRESS].bind(*others)


class _Remote:
    """The language model's deployment as an `Online`.

    Args:
        handle: of the deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def answer(self, row: dict[str, Any]) -> dict[str, Any]:
        """See `Online.answer`."""
        reply: dict[str, Any] = await self._handle.answer.remote(row)
        return reply

    async def pieces(self, row: dict[str, Any]) -> AsyncGenerator[str]:
        """See `Online.pieces`."""
        found = self._handle.options(stream=True).pieces.remote(row)
        try:
            async for piece in found:
                yield piece
        finally:
            found.cancel()


def start(settings: ServeSettings, keys: dict[str, str], profile: Profile) -> None:
    """Deploy on the connected local Ray; returns when it answers."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    resolved = settings.model_copy(update={"run": settings.run.resolve()})
    bound = application(resolved, keys, profile.application.deployments)
    serve.start(http_options=HTTPOptions(**profile.http_options.model_dump()))
    serve.run(bound, name=NAME, route_prefix=profile.application.route_prefix)


def local_app(settings: ServeSettings, key: str) -> FastAPI:
    """The same routes without Ray, for one process: tests, and a floor to measure against."""
    doors = settings.doors
    allowances = Allowances(doors.requests_per_second, doors.burst)

    async def lease(name: str, wanted: int) -> int:
        return allowances.lease(name, wanted)

    gate = Gate(lease, doors.requests_per_second, doors.burst)
    rerank = settings.rerank
    model = None if rerank is None else online_model(rerank.engine, rerank.sampling)
    return web_app(settings, {digest_of(key): "local"}, gate, Holder(settings, model))


def _replica_on_loopback() -> None:
    """Make this replica's port for calls between deployments bind 127.0.0.1.

    Serve binds it to all interfaces, whatever the HTTP options say, and what arrives
    there is unpickled. Runs in the replica before that port is opened.
    """
    from ray.serve._private import replica

    module: Any = replica
    bind = module.add_port_to_grpc_server
    module.add_port_to_grpc_server = lambda server, address: bind(
        server, address.replace("[::]", "127.0.0.1")
    )
