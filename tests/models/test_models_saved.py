from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.sparse import csr_matrix
from toy_models import ITEMS, USERS, WIDTH, toy_model, toy_profiles, toy_settings, toy_train

from raysys.errors import UserError
from raysys.graph.bipartite import bipartite_graph
from raysys.models.lightgcn import LightGCN, LightGCNSettings
from raysys.models.linear import Ease, EaseSettings, ItemKNN, ItemKNNSettings
from raysys.models.popularity import Popularity
from raysys.models.registry import ModelSettings, build_model, registry
from raysys.models.saved import (
    Embeddings,
    load_model,
    restore_model,
    save_linear,
    save_model,
)
from raysys.settings import load_settings
from raysys.store import read_arrays, write_arrays


def test_save_load_same_scores(tmp_path: Path) -> None:
    model, rows = toy_model(), np.array([3, 0, 3, 23])
    save_model(tmp_path, model, toy_settings())
    expected = Embeddings.of(model).score_block(rows)
    assert expected.shape == (4, ITEMS)
    np.testing.assert_array_equal(load_model(tmp_path).score_block(rows), expected)
    restored = restore_model(tmp_path, bipartite_graph(toy_train()), toy_profiles())
    np.testing.assert_array_equal(Embeddings.of(restored).score_block(rows), expected)
    torch.testing.assert_close(restored.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_score_is_the_dot_product_of_final_embeddings() -> None:
    model = toy_model()
    users, items = model.final_embeddings()
    scores = Embeddings.of(model).score_block(np.array([2]))
    assert scores[0, 7] == pytest.approx(float(users[2] @ items[7]), rel=1e-6)


def test_scoring_drops_no_edge() -> None:
    model = toy_model()
    torch.testing.assert_close(model.final_embeddings(), model.final_embeddings(), rtol=0, atol=0)


def test_artifacts_that_do_not_belong_together(tmp_path: Path) -> None:
    save_model(tmp_path, toy_model(), toy_settings())
    arrays = read_arrays(tmp_path / "embeddings.safetensors")
    write_arrays(tmp_path / "embeddings.safetensors", arrays | {"users": arrays["users"][:-1]})
    with pytest.raises(UserError, match=r"'users' must be float32 \(24, 6\)"):
        load_model(tmp_path)
    arrays["items"][0, 0] = np.nan
    write_arrays(tmp_path / "embeddings.safetensors", arrays)
    with pytest.raises(UserError, match="'items' holds NaN"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"nodes' is \(42, 6\), expected \(9, 6\)"):
        restore_model(
            tmp_path,
            bipartite_graph(csr_matrix((4, 5), dtype=np.float32)),
            type(toy_profiles()).of(np.zeros((4, 10), "f4"), np.zeros((5, 10), "f4")),
        )
    (tmp_path / "model.json").write_text(json.dumps({"users": 3}))
    with pytest.raises(UserError, match="does not describe a model"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "nowhere")


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """A folder with itemknn `knn`, ease `ease`, and their blend `both`."""
    train = toy_train()
    for name, model in (
        ("knn", ItemKNN(train, ItemKNNSettings(neighbours=5))),
        ("ease", Ease(train, EaseSettings())),
    ):
        backbone = {"knn": "itemknn"}.get(name, name)
        save_linear(tmp_path / name, ModelSettings(backbone=backbone), train.shape, model)
    save_blend(tmp_path / "both", "knn", "ease")
    return tmp_path


def save_blend(folder: Path, first: str, second: str) -> None:
    settings = ModelSettings(backbone="blend", settings={"first": first, "second": second})
    save_linear(folder, settings, (USERS, ITEMS), None)


@pytest.mark.parametrize(
    ("part", "change", "refusal"),
    [
        ("weights.columns", lambda x: x + 10**9, "does not hold the model"),
        ("train.columns", lambda x: x + 10**9, "does not hold the model"),
        ("train.columns", lambda x: x - ITEMS, "does not hold the model"),
        ("weights.starts", lambda x: np.where(np.arange(len(x)) == 3, 10**8, x), "does not hold"),
        ("weights.starts", lambda x: x[:-1], "does not hold the model"),
        ("train.columns", lambda x: x.astype(np.float32), "'train' has float32 indices"),
        ("weights.values", lambda x: np.full_like(x, np.nan), "'weights' holds NaN"),
        ("train.values", lambda x: np.full_like(x, np.inf), "'train' holds NaN"),
    ],
)
def test_hostile_weights(
    linear: Path, part: str, change: Callable[[Any], Any], refusal: str
) -> None:
    file = linear / "knn" / "weights.safetensors"
    arrays = read_arrays(file)
    write_arrays(file, arrays | {part: change(arrays[part])})
    with pytest.raises(UserError, match=refusal):
        load_model(linear / "knn")


def test_dense_weights_with_nan(linear: Path) -> None:
    file = linear / "ease" / "weights.safetensors"
    arrays = read_arrays(file)
    arrays["weights"] = np.where(np.eye(ITEMS) > 0, np.nan, arrays["weights"]).astype(np.float32)
    write_arrays(file, arrays)
    with pytest.raises(UserError, match="'weights' holds NaN"):
        load_model(linear / "ease")


@pytest.mark.parametrize("name", ["../elsewhere", "..", "", "/etc", "a/../knn"])
def test_a_blend_reads_only_models_beside_it(linear: Path, name: str) -> None:
    assert load_model(linear / "both").score_block(np.array([0])).shape == (1, ITEMS)
    save_blend(linear / "both", name, "ease")
    with pytest.raises(UserError, match="is no name of a model beside it"):
        load_model(linear / "both")


def test_a_blend_of_itself_and_of_another_size(linear: Path) -> None:
    save_blend(linear / "outer", "both", "ease")
    assert load_model(linear / "outer").item_vectors().shape[0] == ITEMS
    save_blend(linear / "both", "outer", "ease")
    with pytest.raises(UserError, match="the blend is a part of itself, by 'outer'"):
        load_model(linear / "outer")
    small = csr_matrix(np.ones((3, 2), dtype=np.float32))
    save_linear(
        linear / "knn", ModelSettings(backbone="itemknn"), (3, 2), ItemKNN(small, ItemKNNSettings())
    )
    save_blend(linear / "both", "knn", "ease")
    with pytest.raises(UserError, match="'knn' has 3 users and 2 items, the blend 24 and"):
        load_model(linear / "both")


def test_same_seed_same_start() -> None:
    first, again, other = (toy_model(seed=seed).state_dict() for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["backbone.nodes"], other["backbone.nodes"])


def test_start_is_xavier_uniform_for_users_and_items_apart() -> None:
    graph = bipartite_graph(csr_matrix((2000, 500), dtype=np.float32))
    model = LightGCN(LightGCNSettings(), graph, torch.Generator().manual_seed(0))
    for table, rows in ((model.nodes[:2000], 2000), (model.nodes[2000:], 500)):
        bound = (6 / (rows + 32)) ** 0.5
        assert 0.98 * bound < table.abs().max() <= bound
        # The standard deviation of a uniform on ±b is b/√3.
        assert table.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def test_popularity_counts_users() -> None:
    train = csr_matrix(np.array([[1, 0, 1], [1, 0, 0]], dtype=np.float32))
    scores = Popularity(train).score_block(np.array([1, 0]))
    np.testing.assert_array_equal(scores, [[2, 0, 1], [2, 0, 1]])


def test_registry_refuses_duplicates() -> None:
    entry = ("lightgcn", LightGCNSettings, LightGCN)
    with pytest.raises(ValueError, match="registered twice"):
        registry(entry, entry)


def test_model_settings_name_the_slip(tmp_path: Path) -> None:
    assert ModelSettings(settings={"layers": 2}).settings == {
        "width": 32, "layers": 2, "keep_rate": 0.8, "reg": 1e-6,
    }  # fmt: skip
    with pytest.raises(ValidationError, match=r"'lightgcn': unknown key 'layer'.*'layers'"):
        ModelSettings(settings={"layer": 2})
    with pytest.raises(ValidationError, match="did you mean 'lightgcn'"):
        ModelSettings(backbone="lightgnc")
    path = tmp_path / "model.toml"
    path.write_text("[settings]\nlayer = 2\n")
    with pytest.raises(UserError, match=r"model\.toml: key 'settings': .*unknown key 'layer'"):
        load_settings(ModelSettings, path)
    path.write_text("[settings]\nreg = 1e-7\n[alignment]\nkd_weight = 0.1\n")
    settings = load_settings(ModelSettings, path)
    assert settings.settings["reg"] == 1e-7
    assert settings.alignment is not None
    assert settings.alignment.temperature == 0.2


def test_alignment_needs_profiles_that_fit() -> None:
    graph = bipartite_graph(toy_train())
    with pytest.raises(UserError, match="reads profile vectors and none"):
        build_model(toy_settings(), graph, None, seed=0)
    for shape in ((USERS, ITEMS + 1), (USERS, ITEMS - 1), (USERS + 1, ITEMS), (USERS - 1, ITEMS)):
        other = bipartite_graph(csr_matrix(shape, dtype=np.float32))
        with pytest.raises(UserError, match=f"do not fit a graph of {shape[0]} and {shape[1]}"):
            build_model(toy_settings(), other, toy_profiles(), seed=0)


def test_width_of_embeddings() -> None:
    users, items = toy_model().final_embeddings()
    assert users.shape == (USERS, WIDTH)
    assert items.shape == (ITEMS, WIDTH)
