"""A language model for callers who wait: one question at a time, whole or piece by piece."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from raysys.text.engine import EngineSettings, SamplingSettings, UnansweredError
from raysys.text.engine_http import Caller
from raysys.text.engine_vllm_online import OnlineVllm

__all__ = ["Online", "UnansweredError", "online_model"]


class Online(Protocol):
    """What answers; rows are those of `raysys.text.engine`."""

    async def answer(self, row: dict[str, Any]) -> dict[str, Any]:
        """A request → its reply, which carries what went wrong. Cancelled, it stops the work."""
        ...

    def pieces(self, row: dict[str, Any]) -> AsyncGenerator[str]:
        """The reply's text as it is written; closed early, it stops the work.

        Raises:
            UnansweredError: there is none, or it broke off.
        """
        ...


def online_model(settings: EngineSettings, sampling: SamplingSettings) -> Online:
    """An endpoint's caller, or vLLM in this process.

    Raises:
        ValueError: an engine that only writes in batches.
    """
    if settings.kind == "http":
        return Caller(settings, sampling, 1, os.environ.get(settings.http.api_key_env, ""))
    if settings.kind == "vllm":
        return OnlineVllm(settings, sampling)
    raise ValueError(f"engine.kind '{settings.kind}' writes in batches only")
