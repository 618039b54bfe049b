"""The routes around a small run, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from toy_run import KEY, write_run

from raysys.serving.app import local_app
from raysys.serving.settings import ServeSettings


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def client_of(run: Path) -> Iterator[Callable[..., TestClient]]:
    """Clients of the routes with some settings."""
    opened = []

    def make(**settings: object) -> TestClient:
        values = {"run": run, "watch_s": 0.05} | settings
        client = TestClient(local_app(ServeSettings.model_validate(values), "secret"))
        client.headers.update(KEY)
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(client_of: Callable[..., TestClient]) -> TestClient:
    return client_of()
