"""The Python interface and the scripts of examples/, on a shop of two tastes."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from toy_run import KEY
from toy_sweep import write_run

import raysys
from raysys.cli import main
from raysys.errors import UserError
from raysys.serving.app import local_app
from raysys.serving.settings import ServeSettings
from raysys.store import read_table, write_json, write_table

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CSV files, a run of them, and what it printed."""
    folder = Path(tmp_path_factory.mktemp("shop"))
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def run(shop: Path) -> raysys.Run:
    words = [str(shop / "inter.csv"), str(shop / "items.csv"), f"out={shop / 'own'}"]
    example("own_csv").main(*words, "train.epochs=3")
    return raysys.open_run(shop / "own")


def test_own_csv_prints_accuracy_and_a_list(
    run: raysys.Run, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(shop / "inter.csv"), str(shop / "items.csv"), f"out={shop / 'own'}"]
    example("own_csv").main(*words, "train.epochs=3")
    printed = capsys.readouterr().out
    assert re.search(r"^ease +NDCG@10 0\.\d{3}$", printed, re.MULTILINE)
    assert re.search(r"^1\. T\d+ \(i\d+\)$", printed, re.MULTILINE)
    assert run.report.is_file()
    # Nothing was asked of a language model: no model reads texts.
    assert not (run.folder / "item_profiles").exists()
    assert not (run.folder / "embeddings").exists()


def test_a_run_in_python_gives_the_lists_of_the_stage(run: raysys.Run) -> None:
    table = read_table(run.folder / "recommend" / "recommendations.parquet").to_pylist()
    for user in ("u0", "u1", "u7"):
        stored = [(row["item_id"], row["title"]) for row in table if row["user_id"] == user]
        ours = run.recommend(user, k=20)
        assert [(one.item_id, one.title) for one in ours] == stored
        assert {one.source for one in ours} == {"model"}


def test_somebody_new(run: raysys.Run, capsys: pytest.CaptureFixture[str]) -> None:
    example("new_user").main(str(run.folder), "i1", "i2")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.endswith("by history") for line in lines[:5])
    assert not {"(i1),", "(i2),"} & set(" ".join(lines[:5]).split())
    assert run.recommend(k=2)[0].source == "popularity"
    assert "i5" not in [one.item_id for one in run.recommend("u0", k=40, exclude=["i5"])]


def test_what_is_not_there_is_said(run: raysys.Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no item 'i99'"):
        run.similar("i99")
    with pytest.raises(UserError, match="items have no column 'colour'"):
        run.recommend("u0", where={"colour": "red"})
    with pytest.raises(UserError, match="has not finished"):
        raysys.open_run(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        raysys.run(tmp_path / "none.toml")


def test_alignment_on_and_off(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"i{item}" for item in range(40)]
    vectors = np.random.default_rng(0).standard_normal((40, 8)).tolist()
    write_table(shop / "vectors.parquet", pa.table({"item_id": names, "vector": vectors}))
    config = shop / "aligned.toml"
    config.write_text(f"""
out = "{shop}/aligned"
[data]
interactions = "{shop}/inter.csv"
items = "{shop}/items.csv"
split = {{ method = "ratio", train = 0.6, valid = 0.2, test = 0.2 }}
[embeddings]
item_vectors = "{shop}/vectors.parquet"
users_from_items = true
[models.ease]
backbone = "ease"
[models.ease_text]
backbone = "ease"
settings = {{ text_weight = 10.0 }}
[models.ease_text_shuffled]
backbone = "ease"
settings = {{ text_weight = 10.0 }}
shuffle_profiles = true
""")
    example("alignment").main(str(config))
    printed = capsys.readouterr().out
    for name in ("ease", "ease_text", "ease_text_shuffled"):
        assert re.search(rf"^{name} +Recall@20 [01]\.\d{{4}}$", printed, re.MULTILINE)


class _Backwards(BaseHTTPRequestHandler):
    """Scores the candidates it is shown: the last one best."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        shown = body["messages"][-1]["content"].rpartition("[Candidate")[2]
        places = re.findall(r"^(\d+)\. ", shown, re.MULTILINE)
        text = json.dumps({"scores": {place: int(place) for place in places}})
        answer = {"choices": [{"message": {"content": text}}], "usage": {}}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Backwards)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_reranking_over_http(
    run: raysys.Run,
    shop: Path,
    endpoint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYSYS_LLM_KEY", "secret")
    words = {
        "out": run.folder,
        "data.interactions": shop / "inter.csv",
        "data.items": shop / "items.csv",
        "train.epochs": 3,
        "rerank.domain": "products",
        "rerank.users": 3,
        "rerank.pool": 6,
        "rerank.k": 6,
        "rerank.weight": 1.0,
        "rerank.max_rank_shift": 6,
        "rerank.cache": shop / "replies.sqlite",
    }
    overrides = [f"{key}={value}" for key, value in words.items()]
    example("rerank_http").main(str(EXAMPLES / "own_csv.toml"), endpoint, "any", *overrides)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.partition(".")[0]) for line in lines] == [1, 2, 3, 4, 5, 6]
    before = [int(re.search(r"was (\d+)", line)[1]) for line in lines]  # type: ignore[index]
    assert sorted(before) == [1, 2, 3, 4, 5, 6]
    assert before != sorted(before)
    # One cascade, three places: what the stage wrote, a server answers, and both begin with ours.
    rerank = {
        key.removeprefix("rerank."): value
        for key, value in words.items()
        if key.startswith("rerank.")
    }
    engine = {"kind": "http", "model": "any", "http": {"base_url": endpoint}}
    values = {"run": run.folder, "rerank": rerank | {"engine": engine}, "deadline_s": 30}
    table = read_table(run.folder / "rerank" / "recommendations.parquet").to_pylist()
    with TestClient(local_app(ServeSettings.model_validate(values), "secret")) as client:
        for user in {row["user_id"] for row in table}:
            mine = [row for row in table if row["user_id"] == user]
            asked = {"user_id": user, "k": 6, "rerank": "relevancy"}
            answer = client.post("/v1/recommend", json=asked, headers=KEY).json()
            assert not answer["degraded"], answer
            served = [(one["item_id"], one["graph_rank"]) for one in answer["items"]]
            assert served == [(row["item_id"], row["graph_rank"]) for row in mine]
            plain = client.post("/v1/recommend", json=asked | {"rerank": "off"}, headers=KEY).json()
            before = [row["item_id"] for row in sorted(mine, key=lambda row: row["graph_rank"])]
            assert before == [one["item_id"] for one in plain["items"]]
            assert before == [one.item_id for one in run.recommend(user, k=6)]


def test_a_published_model_has_a_card_and_is_inspected(
    run: raysys.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(run.folder), "--to", str(tmp_path / "shelf")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "shelf"), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    folder = Path(card["run"])
    assert card["model"]["name"] in run.metrics
    assert card["figures"] == run.metrics[card["model"]["name"]]
    assert card["data"]["counts"]["users"] == 60
    assert card["data"]["license"] == "not stated"
    page = (folder / "MODEL_CARD.md").read_text()
    assert page.startswith(f"# {card['model']['name']}\n")
    assert card["stages"]["train"]["hash"] in page
    # A card of another model is not shown for this one.
    write_json(folder / "card.json", {**card, "stages": {"train": {"hash": "0" * 64}}})
    assert main(["inspect", str(folder)]) == 2
    assert "card of another model" in capsys.readouterr().err
    # A card says what is there: a file that was changed since is named.
    table = folder / "recommend" / "recommendations.parquet"
    table.write_bytes(table.read_bytes() + b"0")
    assert main(["inspect", str(tmp_path / "shelf")]) == 2
    assert "recommendations.parquet is not the file" in capsys.readouterr().err


def test_nothing_to_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds no finished stage" in capsys.readouterr().err
