"""What a sweep tries, without Ray: grids, draws, points of Optuna, and slips that are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from raysys.cluster import ClusterSettings, Resources, at_a_time, local_resources, several
from raysys.errors import UserError
from raysys.pipeline import stages_to
from raysys.settings import load_settings, override_values, parse_settings, read_values
from raysys.stages.context import RunSettings
from raysys.tuning.settings import Range, TuneSettings
from raysys.tuning.space import (
    check_space,
    from_tune,
    listed,
    name_of,
    to_tune,
    trial_config,
    tune_space,
)
from raysys.tuning.sweep import unchanged
from raysys.tuning.trial import trial_cpus

SWEEPS = sorted((Path(__file__).parents[2] / "tune").glob("*.toml"))
BASE = {
    "out": "run",
    "data": {"source": "ml-100k"},
    "models": {"m": {"backbone": "lightgcn"}},
}


def sweep(**values: Any) -> TuneSettings:
    given = {"out": "sweep", "run": "run.toml", "space": {"train.epochs": [1, 2]}}
    return parse_settings(TuneSettings, given | values, source="sweep.toml")


def test_a_grid_has_all_combinations_in_order() -> None:
    space = {"train.epochs": [1, 2], "models.m.settings.layers": [2, 3]}
    assert listed(sweep(space=space)) == [
        {"train.epochs": 1, "models.m.settings.layers": 2},
        {"train.epochs": 1, "models.m.settings.layers": 3},
        {"train.epochs": 2, "models.m.settings.layers": 2},
        {"train.epochs": 2, "models.m.settings.layers": 3},
    ]


def test_draws_are_inside_different_and_the_same_for_a_seed() -> None:
    space = {
        "a": {"low": 1, "high": 4, "whole": True},
        "b": {"low": 1e-4, "high": 1.0, "log": True},
        "c": ["x", "y"],
    }
    one = sweep(space=space, search="random", trials=200)
    found = listed(one)
    assert found == listed(one)
    assert found != listed(one.model_copy(update={"seed": 1}))
    assert len({name_of(values) for values in found}) == 200
    assert {values["a"] for values in found} == {1, 2, 3, 4}
    assert all(type(values["a"]) is int for values in found)
    logs = sorted(math.log10(values["b"]) for values in found)
    assert -4 <= logs[0] <= logs[-1] <= 0
    assert -2.5 < logs[100] < -1.5  # evenly on the logarithmic scale
    assert {values["c"] for values in found} == {"x", "y"}


def test_more_draws_than_there_are_different_trials_are_refused() -> None:
    with pytest.raises(UserError, match=r"holds only about 2 different ones"):
        listed(sweep(search="random", trials=3))


def test_points_of_optuna_stand_for_values_and_back() -> None:
    space = {"a": [[0.2], [0.5]], "b": {"low": 0.1, "high": 1.0, "log": True}}
    settings = sweep(space=space, search="optuna", trials=3)
    values = {"a": [0.5], "b": 0.3}
    point = to_tune(settings, values)
    assert point == {"p0": 1, "p1": 0.3}
    assert from_tune(settings, point) == values
    assert set(tune_space(settings)) == {"p0", "p1"}
    # A finished trial of another sweep of this folder is not proposed.
    assert to_tune(settings, {"a": [0.5]}) is None
    assert to_tune(settings, {"a": [0.9], "b": 0.3}) is None
    assert to_tune(settings, {"a": [0.5], "b": 3.0}) is None


def test_a_trial_is_the_run_with_its_values_and_leaves_the_run_as_it_is() -> None:
    config = trial_config(BASE, {"models.m.settings.layers": 2})
    assert config["models"]["m"] == {"backbone": "lightgcn", "settings": {"layers": 2}}
    assert BASE["models"] == {"m": {"backbone": "lightgcn"}}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.epoch": [1]}, r"unknown key 'train.epoch': did you mean 'epochs'"),
        ({"train.epochs": [1, 0]}, r"'train.epochs' = 0: key 'train.epochs'"),
        ({"models.m.settings.layer": [1]}, r"did you mean 'layers'"),
        ({"train.epochs.more": [1], "train.epochs": [3]}, r"is a value, not a section"),
        ({"train.learning_rate": {"low": -1, "high": 1}}, r"= -1.0: key 'train.learning_rate'"),
    ],
)
def test_every_value_is_checked_before_the_first_trial(space: dict[str, Any], message: str) -> None:
    search = {} if all(isinstance(one, list) for one in space.values()) else {"search": "random"}
    trials = {"trials": 2} if search else {}
    base = BASE | {"train": {"epochs": 3}}
    with pytest.raises(UserError, match=message):
        check_space(sweep(space=space, **search, **trials), base)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "evaluate.recall@20"}, r"what is chosen on test says nothing"),
        ({"space": {}}, r"space"),
        ({"space": {"train.epochs": []}}, r"has no values to try"),
        ({"space": {"cluster.cpus": [1]}}, r"changes no result"),
        ({"space": {"a": {"low": 1, "high": 2}}}, r"is a range: list its values"),
        ({"trials": 3}, r"a grid tries all combinations"),
        ({"search": "optuna"}, r'search = "optuna" wants `trials`'),
        ({"space": {"a": {"low": 2, "high": 1}}}, r"must be below"),
        ({"space": {"a": {"low": 0, "high": 1, "log": True}}}, r"log wants low above 0"),
        ({"space": {"a": {"low": 0.5, "high": 2, "whole": True}}}, r"wants whole numbers"),
        ({"serach": "grid"}, r"did you mean 'search'"),
    ],
)
def test_slips_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep(**values)


def test_losses_are_made_small_and_all_else_large() -> None:
    assert sweep(objective="elmrec_model.validation_loss").smaller_is_better
    assert not sweep(objective="train.validation_recall@20").smaller_is_better


def test_what_no_trial_changes_is_done_once() -> None:
    stages = ("data", "item_profiles", "user_profiles", "embeddings", "train")
    assert unchanged(sweep(), stages) == stages[:4]
    other = sweep(space={"embeddings.model": ["a"], "train.epochs": [1]})
    assert unchanged(other, stages) == stages[:3]
    assert unchanged(sweep(space={"data.k_core": [1]}), stages) == ()


def test_as_many_at_a_time_as_the_cluster_holds() -> None:
    room = trial_cpus(sweep(cpus=2))
    assert at_a_time(Resources(3 * room, 0, 1), room, 0, None, "trial") == 3
    assert at_a_time(Resources(3 * room - 0.5, 0, 1), room, 0, None, "trial") == 2
    assert at_a_time(Resources(3 * room, 0, 1), room, 0, 1, "trial") == 1
    assert at_a_time(Resources(9 * room, 1, 1), room, 0.5, None, "trial") == 2
    with pytest.raises(UserError, match=r"lower `cpus` .* or `gpus`"):
        at_a_time(Resources(100, 0, 1), 1, 1, None, "trial")


def test_a_local_ray_has_cpus_for_as_many_as_there_are_cores() -> None:
    machine = ClusterSettings(cpus=None, gpus=0)
    cores = local_resources(machine).cpus
    assert several(machine, 1, 0, 2.5, None).cpus == math.ceil(cores * 3.5)
    assert several(machine, cores, 0, 1, None).cpus == cores + 1
    assert several(machine, 1, 0, 1, 1).cpus == 2
    said = ClusterSettings(cpus=7)
    assert several(said, 1, 0, 1, None) is said


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_fits_its_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[1])
    settings = load_settings(TuneSettings, path)
    base = read_values(settings.run)
    override_values(base, settings.overrides)
    run = parse_settings(RunSettings, base, source=str(settings.run))
    check_space(settings, base)
    stages = stages_to(run, settings.stage)
    assert stages[-1] == settings.stage
    assert unchanged(settings, stages) != stages
    for choices in settings.space.values():
        assert isinstance(choices, Range) or len(choices) > 1


def test_there_are_sweeps() -> None:
    assert len(SWEEPS) >= 6
