"""Serve config files: ours are taken by Ray as well, and a slip is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raysys.errors import UserError
from raysys.serving.profiles import load_profile
from raysys.serving.settings import ServeSettings
from raysys.settings import parse_settings

PROFILES = sorted((Path(__file__).parents[2] / "serve").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_ours_and_rays(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    profile = load_profile(path)
    assert profile.http_options.host == "127.0.0.1"
    parse_settings(ServeSettings, dict(profile.application.args), source=str(path))
    found = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert found.applications[0].import_path == "serve.app:build"
    names = [one.name for one in found.applications[0].deployments]
    assert names == [one.name for one in profile.application.deployments]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http_option: {}", "did you mean 'http_options'"),
        ("http_options: {prot: 1}", "did you mean 'port'"),
        (
            "applications: [{deployments: [{name: Ingress, max_ongoing_request: 3}]}]",
            "did you mean 'max_ongoing_requests'",
        ),
        ("applications: [{deployments: [{name: Ingres}]}]", "deployments.0.name"),
        ("applications: []", "applications"),
    ],
)
def test_a_slip_is_named(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        load_profile(path)
