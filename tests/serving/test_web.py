"""The routes: what they answer, whom they let in, and that every problem is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from toy_run import KEY

from raysys.schema import RECOMMENDATION_SCHEMA
from raysys.serving.app import local_app
from raysys.serving.messages import Answer, Problem
from raysys.serving.settings import ServeSettings
from raysys.store import write_table


def listed(answer: object) -> list[tuple[str, float]]:
    assert isinstance(answer, dict)
    return [(item["item_id"], item["score"]) for item in answer["items"]]


def test_unseen_items_best_first(client: TestClient) -> None:
    answer = client.post("/v1/recommend", json={"user_id": "u2", "k": 5}).json()
    # u2 = (0, 1): a is seen, b scores 3, c 2, d 1.
    assert listed(answer) == [("b", 3.0), ("c", 2.0), ("d", 1.0)]
    assert (answer["model"], answer["source"]) == ("m", "model")
    assert answer["items"][1]["title"] == "<script>"
    assert client.get("/v1/recommend/u2?k=5").json() == answer


def test_someone_new_is_answered_by_the_history(client: TestClient) -> None:
    asked = {"user_id": "somebody", "history": ["a", "b", "nothing"], "k": 5}
    answer = client.post("/v1/recommend", json=asked).json()
    # The mean of (1, 1) and (2, 3) is (1.5, 2): c scores 8.5, d 2.
    assert listed(answer) == [("c", 8.5), ("d", 2.0)]
    assert answer["source"] == "history"
    assert answer["user_id"] == "somebody"


@pytest.mark.parametrize(
    "asked", [{}, {"user_id": "nobody"}, {"user_id": "u3"}, {"history": ["unknown"]}]
)
def test_without_a_history_it_is_what_most_have(
    client: TestClient, asked: dict[str, object]
) -> None:
    answer = client.post("/v1/recommend", json={**asked, "k": 2}).json()
    # Train has a twice and b once.
    assert listed(answer) == [("a", 2.0), ("b", 1.0)]
    assert answer["source"] == "popularity"


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"exclude": ["b", "unknown"]}, ["c", "d"]),
        ({"where": {"genres": "DRAMA"}}, ["b"]),
        ({"where": {"genres": "comedy"}, "exclude": ["d"]}, []),
        ({"where": {"genres": "Comedy|Drama"}}, []),
    ],
)
def test_filters(client: TestClient, filters: dict[str, object], left: list[str]) -> None:
    answer = client.post("/v1/recommend", json={"user_id": "u2", "filters": filters}).json()
    assert [item["item_id"] for item in answer["items"]] == left


def test_a_batch_answers_what_it_can(client: TestClient) -> None:
    bad = {"user_id": "u1", "filters": {"where": {"genre": "x"}}}
    asked = {"requests": [{"user_id": "u2", "k": 1}, bad, {"history": ["a"], "k": 1}]}
    entries = client.post("/v1/recommend:batch", json=asked).json()["entries"]
    assert listed(entries[0]["answer"]) == [("b", 3.0)]
    assert entries[1]["answer"] is None
    assert "did you mean 'genres'" in entries[1]["problem"]["detail"]
    assert entries[2]["answer"]["source"] == "history"


def test_similar_items_by_cosine(client: TestClient) -> None:
    answer = client.get("/v1/items/b/similar?k=2").json()
    # b = (2, 3): cosine with a .981, with c .923, with d .832.
    assert [item["item_id"] for item in answer["items"]] == ["a", "c"]
    assert answer["items"][0]["score"] == pytest.approx(5 / (13 * 2) ** 0.5)
    problem = client.get("/v1/items/zz/similar")
    assert (problem.status_code, problem.json()["detail"]) == (404, "no item 'zz'")


def test_what_is_served(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["name"], model["users"], model["items"]) == ("m", 3, 4)


def test_every_route_but_health_wants_the_key(client: TestClient) -> None:
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers={"Authorization": ""}).status_code == 200
    routes = [("get", "/v1/models"), ("get", "/metrics"), ("get", "/v1/items/a/similar")]
    routes += [("post", "/v1/recommend"), ("post", "/v1/recommend:batch")]
    for method, path in routes:
        for key in ("", "Bearer wrong", "Bearer sécret"):
            headers = {"Authorization": key.encode()}
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["content-type"] == "application/problem+json"
            assert "secret" not in answer.text


def test_behind_a_prefix_the_same_paths_are_open(run: Path) -> None:
    app = local_app(ServeSettings(run=run), "secret")
    with TestClient(app, root_path="/shop") as client:
        assert client.get("/shop/healthz").status_code == 200
        assert client.get("/shop/v1/models").status_code == 401
        assert client.get("/shop/v1/models", headers=KEY).status_code == 200


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"user_id": "u1", "k": "5"}, "body.k"),
        ({"user_id": "u1", "k": True}, "body.k"),
        ({"user_id": "u1", "k": 0}, "body.k"),
        ({"user_id": "u1", "k": 101}, "body.k"),
        ({"user_id": "x" * 300}, "body.user_id"),
        ({"history": ["a"] * 501}, "body.history"),
        ({"user_id": "u1", "kk": 3}, "body.kk"),
        ({"user_id": "u1", "filters": {"where": {"a": "", "b": "x"}}}, "body.filters.where"),
    ],
)
def test_bad_requests_are_refused(client: TestClient, asked: object, told: str) -> None:
    answer = client.post("/v1/recommend", json=asked)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert told in Problem.model_validate(answer.json()).detail


def test_other_problems_have_the_same_form(client: TestClient) -> None:
    for method, path, status in (("get", "/nowhere", 404), ("delete", "/v1/recommend", 405)):
        answer = client.request(method, path)
        assert Problem.model_validate(answer.json()).status == answer.status_code == status
    answer = client.post("/v1/recommend", content=b"{", headers={"content-type": "x/json"})
    assert answer.status_code == 422


def test_a_large_body_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/recommend", content=b" " * (65 << 10))
    assert Problem.model_validate(answer.json()).status == answer.status_code == 413

    def pieces() -> object:
        for _ in range(70):
            yield b" " * 1024

    assert client.post("/v1/recommend", content=pieces()).status_code == 413


def test_a_key_has_its_rate(client_of: Callable[..., TestClient]) -> None:
    client = client_of(doors={"requests_per_second": 2, "burst": 3})
    codes = [client.get("/v1/models").status_code for _ in range(6)]
    assert codes == [200, 200, 200, 429, 429, 429]
    refused = client.get("/v1/models")
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["content-type"] == "application/problem+json"
    time.sleep(0.6)
    assert client.get("/v1/models").status_code == 200


def test_figures_for_prometheus(client: TestClient) -> None:
    for _ in range(3):
        client.post("/v1/recommend", json={"user_id": "u1"})
    client.get("/secret-path")
    text = client.get("/metrics").text
    assert 'raysys_requests_total{route="/v1/recommend",status="200"} 3.0' in text
    assert 'raysys_lists_total{source="model"} 1.0' in text
    assert "raysys_cached_lists_total 2.0" in text
    assert "secret-path" not in text


def test_answers_are_kept_for_a_while(client_of: Callable[..., TestClient]) -> None:
    client = client_of(cache_s=0.2)
    for _ in range(2):
        client.post("/v1/recommend", json={"user_id": "u1"})
    assert "raysys_cached_lists_total 1.0" in client.get("/metrics").text
    time.sleep(0.3)
    client.post("/v1/recommend", json={"user_id": "u1"})
    assert "raysys_cached_lists_total 1.0" in client.get("/metrics").text


def test_the_cache_is_warm_with_the_lists_of_the_run(
    run: Path, client_of: Callable[..., TestClient]
) -> None:
    ids = [f"{letter}" for letter in "abcd"]
    rows = [
        {"user_id": "u1", "rank": rank, "item_id": ids[rank % 4], "score": 0.5, "title": None}
        for rank in range(1, 11)
    ]
    path = run / "recommend" / "recommendations.parquet"
    write_table(path, pa.Table.from_pylist(rows, RECOMMENDATION_SCHEMA))
    client = client_of()
    answer = client.post("/v1/recommend", json={"user_id": "u1"}).json()
    assert [item["score"] for item in answer["items"]] == [0.5] * 10
    Answer.model_validate(answer)
    assert "raysys_cached_lists_total 1.0" in client.get("/metrics").text


def test_the_documentation_names_the_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    asked = document["paths"]["/v1/recommend"]["post"]
    assert {"200", "401", "404", "413", "422", "429"} <= set(asked["responses"])
    assert document["components"]["schemas"]["Recommend"]["examples"]
