"""The engines by name."""

from __future__ import annotations

from collections.abc import Callable

from raysys.cluster import ClusterSettings
from raysys.text.engine import Engine, EngineSettings, SamplingSettings
from raysys.text.engine_http import HttpEngine
from raysys.text.engine_transformers import TransformersEngine
from raysys.text.engine_vllm import VllmEngine

ENGINES: dict[str, Callable[[EngineSettings, ClusterSettings, SamplingSettings], Engine]] = {
    "vllm": VllmEngine,
    "http": HttpEngine,
    "transformers": TransformersEngine,
}


def build_engine(
    settings: EngineSettings, cluster: ClusterSettings, sampling: SamplingSettings
) -> Engine:
    """The engine that the settings name."""
    return ENGINES[settings.kind](settings, cluster, sampling)
