"""The endpoint as a Ray Serve application: a typed builder, and how it is started on loopback."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI

from raysys.serving.doors import Allowances, Gate, digest_of, load_keys
from raysys.serving.holder import Holder
from raysys.serving.profiles import DeploymentSettings, Profile
from raysys.serving.published import served_run
from raysys.serving.settings import ServeSettings
from raysys.serving.shelf import Shelf
from raysys.serving.web import web_app
from raysys.text.engine_http import Caller
from raysys.text.rerank import RerankSettings

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
        language_model = serve.get_deployment_handle(LANGUAGE_MODEL, NAME)

        async def ask(row: dict[str, Any]) -> dict[str, Any]:
            reply: dict[str, Any] = await language_model.ask.remote(row)
            return reply

        return web_app(settings, known, gate, Holder(settings, ask))

    @serve.deployment(
        name=LANGUAGE_MODEL,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=64,
        # A question that would wait too long is refused at once, and its list is degraded.
        max_queued_requests=128,
    )
    class LanguageModel:
        """Asks the endpoint of the language model; cancelled with the request that asked."""

        def __init__(self) -> None:
            _replica_on_loopback()
            assert settings.rerank is not None
            self._caller = caller_of(settings.rerank)

        async def ask(self, row: dict[str, Any]) -> dict[str, Any]:
            """A reply."""
            return await self._caller.answer(row)

        def check_health(self) -> None:
            """The process answers; the endpoint may be away, and lists are degraded then."""

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


def caller_of(rerank: RerankSettings) -> Caller:
    """What asks the endpoint; its key is in the environment."""
    key = os.environ.get(rerank.engine.http.api_key_env, "")
    return Caller(rerank.engine, rerank.sampling, 1, key)


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
    ask = None if settings.rerank is None else caller_of(settings.rerank).answer
    return web_app(settings, {digest_of(key): "local"}, gate, Holder(settings, ask))


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
