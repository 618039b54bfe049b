"""cluster.yaml by Ray's own validator; the manifests of deploy/ by strict types of what they use.

KubeRay's schema is not on this machine, so every field here is one of its API reference for
ray.io/v1 (1.5.1 or newer for authOptions), and any other one is refused.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from raysys.serving.profiles import load_profile
from raysys.serving.settings import ServeSettings
from raysys.settings import parse_settings

ROOT = Path(__file__).parents[1]
RAY_VERSION = "2.60.0"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Quantities(Strict):
    cpu: str = Field(pattern=r"^\d+m?$")
    memory: str = Field(pattern=r"^\d+[MG]i$")
    gpu: str | None = Field(default=None, alias="nvidia.com/gpu", pattern=r"^\d+$")


class Resources(Strict):
    requests: Quantities
    limits: Quantities


class Variable(Strict):
    name: str
    value: str


class Port(Strict):
    name: Literal["gcs-server", "dashboard", "serve"]
    containerPort: int


class Mount(Strict):
    name: str
    mountPath: str
    readOnly: bool = False


class Container(Strict):
    name: Literal["ray-head", "ray-worker"]
    image: Literal["raysys:cpu", "raysys:gpu"]
    env: list[Variable]
    ports: list[Port] = []
    volumeMounts: list[Mount]
    resources: Resources


class Claim(Strict):
    claimName: str
    readOnly: bool = False


class Secret(Strict):
    secretName: str


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim | None = None
    secret: Secret | None = None


class Toleration(Strict):
    key: Literal["nvidia.com/gpu"]
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class SecurityContext(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: int
    fsGroup: int


class PodSpec(Strict):
    securityContext: SecurityContext
    volumes: list[Volume]
    tolerations: list[Toleration] = []
    containers: list[Container] = Field(min_length=1, max_length=1)


class Pod(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: Pod


class WorkerGroup(HeadGroup):
    groupName: str
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=1)


class AuthOptions(Strict):
    mode: Literal["token"]


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: int
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    resources: Resources


class RayClusterSpec(Strict):
    rayVersion: Literal["2.60.0"]
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayJobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode"]
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    backoffLimit: int
    activeDeadlineSeconds: int
    rayClusterSpec: RayClusterSpec


class RayServiceSpec(Strict):
    serviceUnhealthySecondThreshold: int
    deploymentUnhealthySecondThreshold: int
    serveConfigV2: str
    rayClusterConfig: RayClusterSpec


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec


KINDS: dict[str, tuple[type[BaseModel], str]] = {
    "raycluster": (RayCluster, "spec"),
    "rayjob": (RayJob, "rayClusterSpec"),
    "rayservice": (RayService, "rayClusterConfig"),
}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / f"{name}.yaml").read_text())
    return found


def cluster_of(name: str) -> RayClusterSpec:
    kind, key = KINDS[name]
    spec = kind.model_validate(read(name)).spec  # type: ignore[attr-defined]
    found: RayClusterSpec = spec if key == "spec" else getattr(spec, key)
    return found


def test_all_manifests_are_checked() -> None:
    assert {path.stem for path in (ROOT / "deploy").glob("*.yaml")} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_a_manifest_has_the_fields_it_may_have(name: str) -> None:
    from importlib import metadata

    cluster = cluster_of(name)
    assert metadata.version("ray") == cluster.rayVersion == RAY_VERSION
    assert cluster.headGroupSpec.rayStartParams["num-cpus"] == "0"
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        pod = group.template.spec
        container = pod.containers[0]
        # Ray plans with what a pod may take, so both must be the same.
        assert container.resources.requests == container.resources.limits
        assert {mount.name for mount in container.volumeMounts} == {one.name for one in pod.volumes}
        gpu = container.resources.limits.gpu is not None
        assert gpu == (container.image == "raysys:gpu") == bool(pod.tolerations)
        if isinstance(group, WorkerGroup):
            assert group.minReplicas <= group.replicas <= group.maxReplicas


@pytest.mark.parametrize("name", KINDS)
def test_a_slip_in_a_manifest_is_found(name: str) -> None:
    kind, key = KINDS[name]
    broken = copy.deepcopy(read(name))
    cluster = broken["spec"] if key == "spec" else broken["spec"][key]
    cluster["authOption"] = cluster.pop("authOptions")
    with pytest.raises(ValueError, match="authOption"):
        kind.model_validate(broken)


def test_the_job_runs_a_file_that_is_there() -> None:
    words = read("rayjob")["spec"]["entrypoint"].split()
    assert words[0] == "python"
    for word in words[1:3]:
        assert (ROOT / Path(word).relative_to("/app")).is_file()


def test_the_service_is_a_serve_config(tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    text = read("rayservice")["spec"]["serveConfigV2"]
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    profile = load_profile(path)
    settings = parse_settings(ServeSettings, dict(profile.application.args), source="rayservice")
    # It listens beyond loopback, so it must have keys.
    assert profile.http_options.host == "0.0.0.0"
    assert settings.doors.key_file is not None
    ServeDeploySchema.model_validate(yaml.safe_load(text))


def test_the_image_makes_the_locked_environment() -> None:
    text = (ROOT / "deploy" / "Containerfile").read_text()
    assert "make install LLM=${LLM}" in text
    assert "USER ray" in text
    assert (ROOT / ".dockerignore").read_text() == (ROOT / ".rayignore").read_text()


@pytest.fixture
def aws() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return found


def validated(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_rays_own_validator_takes_the_cluster(aws: dict[str, Any]) -> None:
    prepared = validated(aws)
    kinds = prepared["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == 0
    assert kinds["head"]["max_workers"] == 0
    assert (kinds["cpu"]["max_workers"], kinds["gpu"]["max_workers"]) == (8, 4)
    for kind in ("cpu", "gpu"):
        assert kinds[kind]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_rays_own_validator_refuses_slips(aws: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="available_node_typ"):
        validated(aws | {"available_node_typ": {}})
    with pytest.raises(Exception, match="head_node_type"):
        validated(aws | {"head_node_type": "haed"})


def test_every_node_asks_for_the_token(aws: dict[str, Any]) -> None:
    assert aws["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in aws["setup_commands"])
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all(command.startswith(". ~/.profile;") for command in aws[key])
    assert "--dashboard-host=127.0.0.1" in aws["head_start_ray_commands"][1]
    rules = aws["provider"]["security_group"]["IpPermissions"]
    assert [rule["FromPort"] for rule in rules] == [22]
    assert all(not one["CidrIp"].endswith("/0") for rule in rules for one in rule["IpRanges"])
    assert not os.path.isabs(aws["file_mounts"]["~/raysys"])
