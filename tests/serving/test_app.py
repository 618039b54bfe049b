from __future__ import annotations

import socket

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from raysys.errors import UserError
from raysys.serving import app as serving
from raysys.store import RunDirectory, StageReport, write_arrays, write_json, write_table


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path)

    def data(output):
        inter = {"user_id": ["u1", "u1", "u2"], "item_id": ["a", "b", "a"], "split": ["train"] * 3}
        write_table(output / "interactions.parquet", pa.table(inter))
        write_table(
            output / "items.parquet",
            pa.table({"item_id": ["a", "b", "c"], "title": ["A", None, "<script>"]}),
        )
        write_table(output / "users.parquet", pa.table({"user_id": ["u1", "u2"]}))
        return StageReport()

    def train(output):
        about = {"model": {}, "users": 2, "items": 3, "width": 2}
        write_json(output / "m" / "model.json", about)
        users = np.array([[1, 0], [0, 1]], np.float32)
        items = np.array([[1, 1], [2, 3], [3, 2]], np.float32)
        write_arrays(output / "m" / "embeddings.safetensors", {"users": users, "items": items})
        return StageReport()

    def recommend(output):
        write_json(output / "model.json", {"model": "m"})
        return StageReport()

    for name, body in (("data", data), ("train", train), ("recommend", recommend)):
        directory.run_stage(name, {}, [], body)
    return tmp_path


@pytest.fixture
def client(run):
    return TestClient(serving.web_app(serving.Recommender(run), "secret"))


KEY = {"Authorization": "Bearer secret"}


def test_unseen_items_best_first(client):
    answer = client.get("/v1/recommend/u2?k=5", headers=KEY).json()
    # u2 = (0, 1): a is seen, b scores 3, c scores 2.
    assert [(item["item_id"], item["score"]) for item in answer["items"]] == [
        ("b", 3.0),
        ("c", 2.0),
    ]
    assert client.get("/v1/recommend/u1?k=5", headers=KEY).json()["items"][0]["item_id"] == "c"


def test_every_route_but_health_wants_the_key(client):
    assert client.get("/health").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer sécret"}):
        encoded = {name: value.encode() for name, value in headers.items()}
        assert client.get("/v1/recommend/u1", headers=encoded).status_code == 401


@pytest.mark.parametrize(
    ("path", "status"),
    [("u1?k=0", 422), ("u1?k=101", 422), ("u1?k=x", 422), ("nobody", 404), ("x" * 300, 422)],
)
def test_bad_requests_are_refused(client, path, status):
    assert client.get(f"/v1/recommend/{path}", headers=KEY).status_code == status


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(UserError, match="stage 'data'"):
        serving.Recommender(tmp_path)


def test_a_key_is_made_only_where_none_is_set(monkeypatch):
    monkeypatch.setenv("RAYSYS_API_KEY", "mine")
    assert serving.api_key() == ("mine", False)
    monkeypatch.delenv("RAYSYS_API_KEY")
    key, fresh = serving.api_key()
    assert fresh
    assert len(key) >= 32


@pytest.mark.ray
def test_serve_answers_and_nothing_listens_beyond_loopback(run, local_ray):
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving.start(run, "secret", port)
    try:
        url = f"http://127.0.0.1:{port}/v1/recommend/u2?k=5"
        assert httpx.get(url, headers=KEY, timeout=10).json()["items"][0]["item_id"] == "b"
        assert httpx.get(url, timeout=10).status_code == 401
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in family
            for connection in process.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
    finally:
        serve.shutdown()
