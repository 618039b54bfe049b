"""Serve config files, checked strictly: Ray takes a mistyped key and does nothing with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from raysys.settings import Settings, load_settings


class HttpSettings(Settings):
    """Where the proxy listens."""

    host: str = "127.0.0.1"
    """Loopback. Another address only behind a door of your own: keys travel in the clear."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Of the proxy."""
    request_timeout_s: float = Field(default=65.0, gt=0)
    """Serve gives up a request after that, whatever became of it."""


class AutoscalingSettings(Settings):
    """How many replicas there are, by load."""

    min_replicas: int = Field(default=1, ge=1)
    """Always there."""
    max_replicas: int = Field(default=1, ge=1)
    """Never more."""
    target_ongoing_requests: float = Field(default=16.0, gt=0)
    """Requests that a replica works on at once, on average, before another one is started."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """The load has to last that long."""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """So does its end: a replica is slow to come back."""


class BackpressureSettings(Settings):
    """What a request is told that finds the queue full."""

    status_code: Literal[503, 429] = 503
    """Its status."""
    retry_after_s: float = Field(default=1.0, ge=0)
    """Seconds after which to come again."""


class DeploymentSettings(Settings):
    """One deployment of the application."""

    name: Literal["Ingress", "Rates", "LanguageModel"]
    """Which."""
    num_replicas: int | None = Field(default=None, ge=1)
    """A fixed number; not with `autoscaling_config`."""
    autoscaling_config: AutoscalingSettings | None = None
    """A number by load."""
    max_ongoing_requests: int | None = Field(default=None, ge=1)
    """What one replica works on at once."""
    max_queued_requests: int | None = Field(default=None, ge=1)
    """What may wait for a replica; more is answered with 503."""
    backpressure_config: BackpressureSettings | None = None
    """How that is said."""
    ray_actor_options: dict[Literal["num_cpus", "num_gpus", "memory"], float] | None = None
    """What one replica takes of the cluster."""
    health_check_period_s: float | None = Field(default=None, gt=0)
    """Seconds between looks whether it is well."""
    graceful_shutdown_timeout_s: float | None = Field(default=None, ge=0)
    """Seconds that open requests are given when it stops."""

    def options(self) -> dict[str, Any]:
        """For Serve's `options`."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class ApplicationSettings(Settings):
    """The application."""

    name: Literal["raysys"] = "raysys"
    """Of the application."""
    route_prefix: str = "/"
    """What paths begin with."""
    import_path: Literal["serve.app:build"] = "serve.app:build"
    """The builder."""
    args: dict[str, Any] = Field(default_factory=dict)
    """See `ServeSettings`."""
    deployments: tuple[DeploymentSettings, ...] = ()
    """What differs from the defaults."""


class Profile(Settings):
    """A Serve config file with one application."""

    http_options: HttpSettings = HttpSettings()
    """Where the proxy listens."""
    applications: tuple[ApplicationSettings] = (ApplicationSettings(),)
    """The one application."""

    @property
    def application(self) -> ApplicationSettings:
        """The one application."""
        return self.applications[0]


def load_profile(path: Path | None) -> Profile:
    """A profile such as `serve/local.yaml`; none: the defaults.

    Raises:
        UserError: no such file, or a key or value that is none.
    """
    return Profile() if path is None else load_settings(Profile, path)
