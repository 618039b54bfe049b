"""The endpoint for `serve deploy serve/local.yaml` and `serve run serve.app:build run=RUN`."""

from typing import Any

from raysys.serving.app import application
from raysys.serving.settings import ServeSettings
from raysys.settings import parse_settings


def build(args: dict[str, Any]) -> Any:
    """The application with the config's `args`: see `raysys.serving.settings.ServeSettings`."""
    return application(parse_settings(ServeSettings, args, source="args"))
