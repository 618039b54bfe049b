"""The recommender as one Ray Serve deployment: retrieval in the ingress process.

Routes: `GET /health` (open) and `GET /v1/recommend/{user_id}?k=10` (wants the
key as `Authorization: Bearer KEY`). Listens on loopback.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Header, HTTPException, Query
from fastapi import Path as UrlPath
from pydantic import BaseModel

from raysys.data.dataset import Dataset
from raysys.models.saved import load_model
from raysys.ranking.retrieve import retrieve
from raysys.schema import SPLITS, TITLE
from raysys.stages.recommend import MODEL_FILE
from raysys.store import RunDirectory, read_json

KEY_VARIABLE = "RAYSYS_API_KEY"
MAX_K = 100
TIMEOUT_S = 10.0


class Item(BaseModel):
    """One recommended item."""

    item_id: str
    title: str | None
    score: float


class Answer(BaseModel):
    """What `/v1/recommend` returns, best item first."""

    user_id: str
    model: str
    items: list[Item]


class Recommender:
    """Loads a run once and answers from memory.

    Args:
        run: the run directory; its stages `data`, `train` and `recommend` have finished.

    Raises:
        UserError: a stage is missing or a file is broken.
    """

    def __init__(self, run: Path) -> None:
        directory = RunDirectory(run)
        for stage in ("data", "train", "recommend"):
            directory.require(stage, "raysys run CONFIG")
        about = read_json(directory.path("recommend") / MODEL_FILE)
        self.model = str(about["model"])
        # Runs of version 0.1 did not say where the model is.
        self._scorer = load_model(directory.path(about.get("stage", "train")) / self.model)
        dataset = Dataset.load(directory.path("data"))
        self._rows = {user: row for row, user in enumerate(dataset.user_ids)}
        self._item_ids = dataset.item_ids
        self._titles = dataset.items[TITLE].to_pylist()
        self._seen = dataset.matrix(*SPLITS, opinion=None)

    def recommend(self, user_id: str, k: int) -> Answer | None:
        """The k best unseen items of a user; None for a user that the run does not know."""
        row = self._rows.get(user_id)
        if row is None:
            return None
        items, scores = retrieve(self._scorer.score_block, np.array([row]), self._seen, k)
        found = [
            Item(item_id=self._item_ids[item], title=self._titles[item], score=float(score))
            for item, score in zip(items[0], scores[0], strict=True)
            if item >= 0
        ]
        return Answer(user_id=user_id, model=self.model, items=found)


def web_app(recommender: Recommender, key: str) -> FastAPI:
    """The HTTP routes around a recommender; `key` is what callers must send."""
    web = FastAPI(title="raysys", docs_url=None, redoc_url=None, openapi_url=None)

    def check(authorization: Annotated[str, Header(max_length=512)] = "") -> None:
        given = authorization.removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, key.encode()):
            raise HTTPException(401, "send the key as `Authorization: Bearer KEY`")

    @web.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": recommender.model}

    @web.get("/v1/recommend/{user_id}", dependencies=[Depends(check)])
    def recommend(
        user_id: Annotated[str, UrlPath(max_length=256)],
        k: Annotated[int, Query(ge=1, le=MAX_K)] = 10,
    ) -> Answer:
        answer = recommender.recommend(user_id, k)
        if answer is None:
            raise HTTPException(404, "this run does not know the user")
        return answer

    return web


def api_key() -> tuple[str, bool]:
    """The key from `RAYSYS_API_KEY`, or a fresh one; and whether it is fresh."""
    given = os.environ.get(KEY_VARIABLE, "")
    return (given, False) if given else (secrets.token_urlsafe(24), True)


def start(run: Path, key: str, port: int) -> None:
    """Deploy on the connected local Ray, on loopback only; returns when it answers."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    folder = run.resolve()

    def build() -> FastAPI:
        _replica_on_loopback()
        return web_app(Recommender(folder), key)

    @serve.deployment(
        ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=64, max_queued_requests=256
    )
    @serve.ingress(build)
    class Ingress:
        """Serve's shell around the routes."""

        def check_health(self) -> None:
            """The process answers; the model was checked when it was loaded."""

    Recommender(folder)  # A broken run is a clear error here, not a replica that never starts.
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port, request_timeout_s=TIMEOUT_S))
    application: Any = Ingress
    serve.run(application.bind(), name="raysys", route_prefix="/")


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
