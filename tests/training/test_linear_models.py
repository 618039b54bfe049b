"""Linear models as models of a run, and what else a training job can ask for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from toy_models import ITEMS, USERS, toy_model, toy_settings, write_toy_dataset

from raysys.errors import UserError
from raysys.models.linear import Ease, EaseSettings
from raysys.models.registry import ModelSettings
from raysys.models.saved import load_model, save_model, start_from
from raysys.settings import parse_settings
from raysys.stages.context import RunSettings, TrainedModelSettings
from raysys.store import read_json, write_json
from raysys.training.jobs import TrainJob, load_inputs
from raysys.training.linear_models import train_linear_model
from raysys.training.loop import TrainSettings

ROWS = np.arange(USERS)


@pytest.fixture
def job(tmp_path):
    write_toy_dataset(tmp_path / "data")
    return TrainJob(
        dataset=tmp_path / "data",
        model=ModelSettings(backbone="ease", settings={"reg": 2.0}),
        train=TrainSettings(),
        profiles=tmp_path / "data" / "vectors.safetensors",
    )


def fitted(job, tmp_path, name, backbone, settings, **more):
    model = ModelSettings(backbone=backbone, settings=settings)
    return train_linear_model(replace(job, model=model, **more), tmp_path / "models" / name)


def test_what_is_saved_scores_as_what_was_fitted(job, tmp_path):
    given = load_inputs(replace(job, model=ModelSettings()))
    train, valid = given.train, given.valid
    assert valid.nnz
    assert given.profiles is None
    for solver in ("dense", "sparse"):
        values = {"reg": 2.0, "solver": solver, "neighbours": 5}
        fitted(job, tmp_path, solver, "ease", values)
        loaded = load_model(tmp_path / "models" / solver)
        ours = Ease(train, EaseSettings(**values)).score_block(ROWS)
        assert np.array_equal(loaded.score_block(ROWS), ours)
        assert loaded.item_vectors().shape == (ITEMS, ITEMS)


def test_a_grid_is_decided_by_validation_and_written_down(job, tmp_path):
    grid = {"reg": (1e6, 1.0, 1e5)}
    result = fitted(job, tmp_path, "ease", "ease", {}, grid=grid)
    alone = [fitted(job, tmp_path, f"e{reg}", "ease", {"reg": reg}) for reg in grid["reg"]]
    assert result.best_recall == max(other.best_recall for other in alone)
    best = grid["reg"][int(np.argmax([other.best_recall for other in alone]))]
    assert result.chosen == {"reg": best}
    assert read_json(tmp_path / "models/ease/model.json")["model"]["settings"]["reg"] == best
    with pytest.raises(UserError, match="unknown setting 'rag'"):
        fitted(job, tmp_path, "e", "ease", {}, grid={"rag": (1.0,)})


def test_a_blend_of_two_saved_models(job, tmp_path):
    fitted(job, tmp_path, "ease", "ease", {"reg": 2.0})
    fitted(job, tmp_path, "knn", "itemknn", {"neighbours": 3})
    parts = {"first": "ease", "second": "knn"}
    result = fitted(job, tmp_path, "both", "blend", parts, grid={"weight": (0.0, 0.5, 1.0)})
    assert result.chosen["weight"] in (0.0, 0.5, 1.0)
    fitted(job, tmp_path, "first", "blend", parts | {"weight": 1.0})
    blend, ease = (load_model(tmp_path / "models" / name) for name in ("first", "ease"))
    order = np.argsort(-blend.score_block(ROWS), axis=1, kind="stable")
    assert np.array_equal(order[:, :5], np.argsort(-ease.score_block(ROWS), kind="stable")[:, :5])
    with pytest.raises(UserError, match="names model 'gone', which is not trained"):
        fitted(job, tmp_path, "x", "blend", {"first": "gone", "second": "knn"})


def test_text_needs_vectors_and_the_control_deals_them_out_anew(job, tmp_path):
    values = {"reg": 2.0, "text_weight": 5.0}
    result = fitted(job, tmp_path, "text", "ease", values)
    assert result.null_items == 1
    fitted(job, tmp_path, "shuffled", "ease", values, shuffle_profiles=True)
    text, control = (load_model(tmp_path / "models" / name) for name in ("text", "shuffled"))
    assert not np.allclose(text.score_block(ROWS), control.score_block(ROWS))
    with pytest.raises(UserError, match="reads profile vectors but none are given"):
        fitted(job, tmp_path, "x", "ease", {}, profiles=None, grid={"text_weight": (0.0, 1.0)})


def test_noise_touches_train_only(job):
    clean, noisy = load_inputs(job), load_inputs(replace(job, train_noise=0.2))
    assert noisy.train.nnz == round(1.2 * clean.train.nnz)
    assert (noisy.valid != clean.valid).nnz == 0


def test_a_model_starts_from_the_backbone_of_another(tmp_path):
    aligned, plain = toy_settings(), toy_settings(aligned=False)
    folder = tmp_path / "aligned"
    save_model(folder, toy_model(aligned, seed=5), aligned, "data", "train")
    for settings in (aligned, plain):
        model = toy_model(settings, seed=1)
        start_from(model, folder, "lightgcn", "data", ["train", "train and valid"])
        expected = toy_model(plain, seed=5).final_embeddings()
        assert all(a.equal(b) for a, b in zip(model.final_embeddings(), expected, strict=True))
    with pytest.raises(UserError, match="another data set"):
        start_from(toy_model(plain), folder, "lightgcn", "other data", ["train"])
    with pytest.raises(UserError, match="another split"):
        start_from(toy_model(plain), folder, "lightgcn", "data", ["other train"])
    wider = plain.model_copy(update={"settings": plain.settings | {"width": 8}})
    with pytest.raises(UserError, match="'nodes' is"):
        start_from(toy_model(wider), folder, "lightgcn", "data", ["train"])
    # The same parameters by name and shape, and still another model.
    other = ModelSettings(backbone="simgcl", settings={"width": 6})
    with pytest.raises(UserError, match="a saved 'lightgcn': a 'simgcl' cannot start from it"):
        start_from(toy_model(other), folder, "simgcl", "data", ["train"])


def test_what_a_start_may_have_learnt(job):
    alone, again = load_inputs(job), load_inputs(replace(job, refit=True))
    noisy = load_inputs(replace(job, train_noise=0.2))
    assert alone.learnt == noisy.learnt != again.learnt
    assert alone.starts == (alone.learnt,)
    assert set(again.starts) == {alone.learnt, again.learnt}


def test_weights_that_do_not_fit_are_refused(job, tmp_path):
    fitted(job, tmp_path, "ease", "ease", {"reg": 2.0})
    about = tmp_path / "models" / "ease" / "model.json"
    write_json(about, read_json(about) | {"items": ITEMS + 1})
    with pytest.raises(UserError, match=r"'weights' must be float32 \(19, 19\)"):
        load_model(tmp_path / "models" / "ease")


def test_configs_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="'ease' has no embeddings to align"):
        parse_settings(ModelSettings, {"backbone": "ease", "alignment": {}}, source="x")
    with pytest.raises(UserError, match=r"did you mean 'simgcl'.*All: lightgcn, gccf, sgl"):
        parse_settings(ModelSettings, {"backbone": "simcgl"}, source="x")
    with pytest.raises(UserError, match="grid is for linear models"):
        parse_settings(TrainedModelSettings, {"grid": {"reg": [1.0]}}, source="x")
    with pytest.raises(UserError, match="has no start"):
        parse_settings(TrainedModelSettings, {"backbone": "ease", "start_from": "a"}, source="x")
    with pytest.raises(UserError, match="reads no profiles here that could be shuffled"):
        parse_settings(TrainedModelSettings, {"shuffle_profiles": True}, source="x")
    wrong = {"backbone": "ease", "train": {"epochs": 3, "seed": 1}}
    with pytest.raises(UserError, match=r"leave out train\.epochs"):
        parse_settings(TrainedModelSettings, wrong, source="x")
    noisy = {"backbone": "blend", "settings": {"first": "a", "second": "b"}, "train_noise": 0.1}
    with pytest.raises(UserError, match="a blend is not trained"):
        parse_settings(TrainedModelSettings, noisy, source="x")
    for models, said in (
        ({"a": {"start_from": "b"}, "b": {}}, "models.a starts from 'b', which is not above it"),
        ({"b": {"backbone": "sgl"}, "a": {"start_from": "b"}}, "'sgl', not 'lightgcn'"),
    ):
        values = {"out": "x", "data": {"source": "ml-100k"}, "models": models}
        with pytest.raises(UserError, match=said):
            parse_settings(RunSettings, values, source="x")
    blend = {"backbone": "blend", "settings": {"first": "e", "second": "later"}}
    models = {"e": {"backbone": "ease"}, "b": blend, "later": {}}
    with pytest.raises(UserError, match="'later', which is no model above it"):
        parse_settings(
            RunSettings, {"out": "x", "data": {"source": "ml-100k"}, "models": models}, source="x"
        )


def test_published_rows_take_the_place_of_a_config():
    settings = parse_settings(
        RunSettings, {"out": "x", "data": {"source": "ml-100k"}, "models": {"a": {}}}, source="x"
    )
    models = settings.with_models(["sgl", "lightgcn"], ["none", "gen"]).models
    assert list(models) == ["sgl", "sgl_gen", "lightgcn", "lightgcn_gen"]
    assert models["lightgcn_gen"].settings["layers"] == 2
    assert models["sgl_gen"].alignment.mask_ratio == 0.2
    with pytest.raises(UserError, match=r"did you mean 'sgl'.*All: lightgcn"):
        settings.with_models(["sgle"], ["none"])
    with pytest.raises(UserError, match=r"did you mean 'gen'"):
        settings.with_models(["sgl"], ["gene"])
    with pytest.raises(UserError, match="no aligned row for 'gat', only for lightgcn"):
        settings.with_models(["gat"], ["con"])


def test_weight_zero_is_a_control():
    weights = ({"kd_weight": 0}, {"kind": "gen", "recon_weight": 0}, {"kd_weight": 0.1})
    found = [TrainedModelSettings(alignment=alignment) for alignment in weights]
    assert [model.control for model in found] == [True, True, False]
