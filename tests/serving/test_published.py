"""Published models: checked, swapped in without a failed request, and taken back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from toy_run import ITEMS, write_run

from raysys.cli import main
from raysys.errors import UserError
from raysys.manifest import StageReport
from raysys.runs import RunDirectory
from raysys.serving.published import publish, rollback, served_run
from raysys.store import read_json, write_json


@pytest.fixture
def better(tmp_path: Path) -> Path:
    """Another run of the same users and items, whose list is the other way round."""
    return write_run(tmp_path / "better", ITEMS[:, ::-1].copy(), recall=0.6)


def first(client: TestClient) -> str:
    answer = client.post("/v1/recommend", json={"user_id": "u2", "k": 1})
    assert answer.status_code == 200
    found: str = answer.json()["items"][0]["item_id"]
    return found


def wait_for(what: Callable[[], bool]) -> None:
    for _ in range(200):
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within 4 s")


def test_a_new_model_is_swapped_in_and_back(
    run: Path, better: Path, tmp_path: Path, client_of: Callable[..., TestClient]
) -> None:
    models = tmp_path / "models"
    publish(run, models)
    client = client_of(run=models)
    assert first(client) == "b"
    publish(better, models)
    wait_for(lambda: first(client) == "c")
    version = client.get("/v1/models").json()["models"][0]["version"]
    assert version == read_json(models / "current.json")["version"]
    rollback(models)
    wait_for(lambda: first(client) == "b")
    assert "raysys_model_swaps_total 2.0" in client.get("/metrics").text


def test_a_model_that_does_not_load_is_not_served(
    run: Path, better: Path, tmp_path: Path, client_of: Callable[..., TestClient]
) -> None:
    models = tmp_path / "models"
    publish(run, models)
    client = client_of(run=models)
    pointer = publish(better, models)
    broken = models / "versions" / pointer.version / "train" / "m" / "embeddings.safetensors"
    rollback(models)
    wait_for(lambda: first(client) == "b")
    broken.write_bytes(b"broken")
    write_json(models / "current.json", {"version": pointer.version, "previous": None})
    for _ in range(10):
        assert first(client) == "b"
        time.sleep(0.02)
    (models / "current.json").write_text("{")
    time.sleep(0.2)
    assert first(client) == "b"


def test_the_same_run_is_one_version(run: Path, tmp_path: Path) -> None:
    one = publish(run, tmp_path / "models")
    assert publish(run, tmp_path / "models") == one
    assert one.previous is None
    with pytest.raises(UserError, match="no version before"):
        rollback(tmp_path / "models")


def test_what_reranking_chose_is_published_too(run: Path, tmp_path: Path) -> None:
    def rerank(output: Path) -> StageReport:
        write_json(output / "choice.json", {"weight": 0.5, "below": None, "tried": []})
        return StageReport()

    RunDirectory(run).run_stage("rerank", {}, [], rerank)
    publish(run, tmp_path / "models")
    _, served = served_run(tmp_path / "models")
    assert read_json(served / "rerank" / "choice.json")["weight"] == 0.5


def test_a_floor_keeps_a_worse_model_out(run: Path, better: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    served = publish(better, models, {"recall@20": 0.55})
    with pytest.raises(UserError, match=r"recall@20 0\.5000, below the floor 0\.55"):
        publish(run, models, {"recall@20": 0.55})
    with pytest.raises(UserError, match="did not measure recall"):
        publish(run, models, {"recall@99": 0.1})
    assert read_json(models / "current.json")["version"] == served.version


@pytest.mark.parametrize("harm", ["changed", "missing", "further", "link", "not finite", "shape"])
def test_what_is_not_what_the_run_wrote_is_refused(run: Path, tmp_path: Path, harm: str) -> None:
    path = run / "train" / "m" / "embeddings.safetensors"
    if harm == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif harm == "missing":
        path.unlink()
    elif harm == "further":
        (run / "train" / "m" / "model.pkl").write_bytes(b"cos\nsystem\n")
    elif harm == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        items = np.full((4, 2), np.nan, np.float32) if harm == "not finite" else ITEMS[:2]
        run = write_run(tmp_path / "other", np.array(items, np.float32))
    with pytest.raises(UserError):
        publish(run, tmp_path / "models")
    assert not (tmp_path / "models" / "current.json").exists()
    assert not list((tmp_path / "models").glob("versions/*"))


def test_a_pointer_stays_inside_its_folder(run: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(run, models)
    for version in ("../../run", "nothing", ""):
        write_json(models / "current.json", {"version": version, "previous": None})
        with pytest.raises(UserError, match="not there"):
            served_run(models)


def test_commands(run: Path, better: Path, tmp_path: Path) -> None:
    models = str(tmp_path / "models")
    assert main(["publish", str(run), "--to", models]) == 0
    assert main(["publish", str(better), "--to", models, "--floor", "recall@20=0.9"]) == 2
    assert main(["publish", str(better), "--to", models, "--floor", "recall"]) == 2
    assert main(["publish", str(better), "--to", models]) == 0
    assert main(["rollback", models]) == 0
    assert main(["publish", str(tmp_path / "nothing"), "--to", models]) == 2
