"""vLLM in a process of its own beside this one, for callers who wait."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from raysys.cluster import ClusterSettings
from raysys.schema import GENERATED_TOKENS, PROMPT_TOKENS
from raysys.text.engine import (
    ERROR,
    KEY,
    MAX_TOKENS,
    MESSAGES,
    REPLY,
    SCHEMA,
    EngineSettings,
    SamplingSettings,
    Tokens,
    UnansweredError,
)
from raysys.text.engine_vllm import VllmEngine


class OnlineVllm:
    """An `Online` model on this machine's GPUs, or its CPU where there is none.

    Started with the first request's event loop; requests of all callers are decoded together.
    """

    def __init__(self, settings: EngineSettings, sampling: SamplingSettings) -> None:
        import torch

        on_gpu = torch.cuda.is_available()
        batch = VllmEngine(settings, ClusterSettings(), sampling)
        environment = batch.environment(on_gpu)
        # Unbound, vLLM leaves a core to whatever serves beside it.
        environment.pop("VLLM_CPU_OMP_THREADS_BIND", None)
        os.environ.update(environment)
        from vllm import AsyncEngineArgs
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = batch.arguments(on_gpu) | {"stream_interval": 1}
        self._engine: Any = AsyncLLM.from_engine_args(
            AsyncEngineArgs(model=batch.model(on_gpu), **arguments)
        )
        self._tokens: Tokens = batch.count
        self._sampling = sampling
        #: Of a request that the engine does not take: a prompt that is too long.
        self._refused = (VLLMClientError, ValueError)

    async def answer(self, row: dict[str, Any]) -> dict[str, Any]:
        """See `Online.answer`."""
        answer = {KEY: row[KEY], REPLY: "", ERROR: "", PROMPT_TOKENS: 0, GENERATED_TOKENS: 0}
        try:
            async for found in self._outputs(row, whole=True):
                answer |= {
                    REPLY: found.outputs[0].text,
                    PROMPT_TOKENS: len(found.prompt_token_ids or ()),
                    GENERATED_TOKENS: len(found.outputs[0].token_ids),
                }
        except self._refused as error:
            answer[ERROR] = str(error)
        return answer

    async def pieces(self, row: dict[str, Any]) -> AsyncGenerator[str]:
        """See `Online.pieces`."""
        try:
            async for found in self._outputs(row, whole=False):
                yield found.outputs[0].text
        except self._refused as error:
            raise UnansweredError(str(error)) from None

    def working(self) -> int:
        """Requests that the engine is at work on."""
        return int(self._engine.output_processor.get_num_unfinished_requests())

    async def check_health(self) -> None:
        """Raises if the engine's process has died, so that Serve starts another replica."""
        await self._engine.check_health()

    def close(self) -> None:
        """End the engine's process."""
        self._engine.shutdown()
        self._engine = None  # now: its own clean-up fails once the interpreter ends

    def _outputs(self, row: dict[str, Any], *, whole: bool) -> AsyncGenerator[Any]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        kind = RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.DELTA
        parameters = SamplingParams(
            **self._sampling.model_dump(),
            max_tokens=row[MAX_TOKENS],
            structured_outputs=StructuredOutputsParams(json=row[SCHEMA]),
            output_kind=kind,
        )
        prompt = self._tokens.chat(json.loads(row[MESSAGES]))
        # Closed or cancelled, the generator takes its request out of the engine.
        outputs: AsyncGenerator[Any] = self._engine.generate(prompt, parameters, uuid.uuid4().hex)
        return outputs
