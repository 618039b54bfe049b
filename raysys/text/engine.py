"""The LLM as one protocol: a Ray Data set of chats in, a Ray Data set of replies out.

`vllm` runs vLLM through `ray.data.llm` on the GPUs of the cluster, or on its
CPUs where there is no GPU.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa
from pydantic import Field

from raysys.assets import model_path
from raysys.cluster import (
    SMALL_CPUS,
    ClusterSettings,
    Pool,
    Resources,
    StagePlan,
    connected_resources,
    cores_per,
    share,
)
from raysys.schema import ENTITY_ID, GENERATED_TOKENS, PROMPT_TOKENS
from raysys.settings import Settings
from raysys.text.orphans import EXIT_WITH_PARENT
from raysys.text.quantize import int8_model

if TYPE_CHECKING:
    from ray.data import Dataset

#: Columns of a request row beside `entity_id`.
MESSAGES = "messages"
#: Columns of a reply row beside `entity_id` and the token counts; one of the two is empty.
REPLY = "reply"
ERROR = "error"


#: Blocks of 128 tokens, the default, would compute most of a shared prompt again; steps of more
#: tokens than these fall out of the processor's caches and are a tenth slower (measured).
CPU_ARGUMENTS = {"block_size": 32, "max_num_batched_tokens": 512}


class EngineSettings(Settings):
    """Which LLM writes the texts, and how it is run."""

    kind: Literal["vllm"] = "vllm"
    """The engine."""
    model: str = "smollm2-135m-instruct"
    """An asset name, a local folder, or a hub id."""
    max_model_len: int = Field(default=2048, ge=128)
    """Prompt and reply tokens together."""
    max_num_seqs: int = Field(default=128, ge=1)
    """Sequences decoded together."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of one Ray Data block: what a crash can cost is a few of these."""
    kv_cache_gib: float = Field(default=2.0, gt=0)
    """KV cache of one CPU engine; on a GPU vLLM takes what is free."""
    cpu_quantization: Literal["none", "int8"] = "none"
    """`int8`: a CPU engine computes with 8-bit weights and activations, about 1.5 times as fast."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share one engine."""


class SamplingSettings(Settings):
    """How replies are decoded. Temperature 0 makes runs repeatable."""

    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time."""
    repetition_penalty: float = Field(default=1.0, ge=1)
    """Above 1 keeps small models from going round in circles; it slows a CPU by a third."""
    seed: int = 2023
    """Used when the temperature is above 0."""


class Engine(Protocol):
    """What every engine can do."""

    def plan(self, stage: str, have: Resources) -> StagePlan:
        """The actor pools that `replies` will start."""
        ...

    def replies(self, requests: Dataset) -> Dataset:
        """Rows (entity_id, messages) → rows (entity_id, reply, error, token counts)."""
        ...


class VllmEngine:
    """vLLM through `ray.data.llm`, with prefix caching and JSON-schema decoding."""

    def __init__(
        self,
        settings: EngineSettings,
        cluster: ClusterSettings,
        sampling: SamplingSettings,
        *,
        schema: dict[str, Any],
        max_tokens: int,
    ) -> None:
        self._settings, self._cluster = settings, cluster
        self.sampling_parameters = {
            **sampling.model_dump(),
            "max_tokens": max_tokens,
            # As a string: a nested dict does not survive the trip through Arrow.
            "structured_outputs": {"json": json.dumps(schema)},
        }

    def plan(self, stage: str, have: Resources) -> StagePlan:
        """Engines take the GPUs, or an equal share of the CPUs where there are none."""
        settings, replicas = self._settings, self._cluster.engine_replicas
        if have.gpus:
            engine = Pool("engine", replicas, 1.0, gpus=settings.tensor_parallel)
        else:
            cpus = share(have, replicas, reserved=SMALL_CPUS)
            # Measured: weights, runtime and compiled grammars take about 2 GiB beside the cache.
            engine = Pool("engine", replicas, cpus, memory_gib=settings.kv_cache_gib + 2)
        return StagePlan(stage, (engine, Pool("chat template", 1, SMALL_CPUS)))

    def replies(self, requests: Dataset) -> Dataset:
        """See `Engine.replies`; rows that fail carry the reason in `error`."""
        from ray.data.llm import (
            ChatTemplateStageConfig,
            build_processor,
            vLLMEngineProcessorConfig,
        )

        engine = self.plan("", connected_resources()).pools[0]
        settings = self._settings
        on_gpu = engine.gpus > 0
        config = vLLMEngineProcessorConfig(
            model_source=self.model(on_gpu),
            engine_kwargs=self.arguments(on_gpu),
            concurrency=(engine.actors, engine.actors),
            batch_size=settings.batch_size,
            # Twice what the engine decodes at once: it never waits for Ray Data.
            max_concurrent_batches=max(2, 2 * settings.max_num_seqs // settings.batch_size),
            runtime_env={"env_vars": self.environment(on_gpu)},
            placement_group_config={
                "bundles": [{"CPU": engine.cpus, **({"GPU": 1} if on_gpu else {})}]
                * settings.tensor_parallel
            },
            should_continue_on_error=True,
            log_engine_metrics=False,
            chat_template_stage=ChatTemplateStageConfig(num_cpus=SMALL_CPUS, concurrency=1),
            # vLLM tokenises and detokenises itself; two more actor pools would only cost memory.
            tokenize_stage=False,
            detokenize_stage=False,
        )
        sampling = self.sampling_parameters

        def request(row: dict[str, Any]) -> dict[str, Any]:
            return {
                ENTITY_ID: row[ENTITY_ID],
                "messages": json.loads(row[MESSAGES]),
                "sampling_params": sampling,
            }

        small: dict[str, Any] = {"num_cpus": SMALL_CPUS}
        processor = build_processor(
            config,
            preprocess=request,
            postprocess=_reply_row,
            preprocess_map_kwargs=small,
            postprocess_map_kwargs=small,
        )
        return processor(requests).map_batches(
            _reply_columns, batch_format="pyarrow", batch_size=None, num_cpus=SMALL_CPUS
        )

    def model(self, on_gpu: bool) -> str:
        """The folder or hub id that vLLM loads."""
        path = model_path(self._settings.model)
        return path if on_gpu or self._settings.cpu_quantization == "none" else int8_model(path)

    def arguments(self, on_gpu: bool) -> dict[str, Any]:
        """What vLLM is started with, beside the model."""
        from raysys.models.align import fast_bfloat16

        settings = self._settings
        return {
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "dtype": "bfloat16" if on_gpu or fast_bfloat16() else "float32",
            "enable_prefix_caching": True,
            **({} if on_gpu else CPU_ARGUMENTS),
            "distributed_executor_backend": "uni" if settings.tensor_parallel == 1 else "ray",
            "tensor_parallel_size": settings.tensor_parallel,
            # On CPU there is nothing to capture; compiling would only delay the start.
            "enforce_eager": not on_gpu,
            # Free whitespace between JSON tokens lets a small model write blanks for ever.
            "structured_outputs_config": {
                "backend": "xgrammar",
                "disable_any_whitespace": True,
            },
            "disable_log_stats": True,
        }

    def environment(self, on_gpu: bool) -> dict[str, str]:
        """Environment variables of the engine's process."""
        environment = {EXIT_WITH_PARENT: "1"}
        if on_gpu:
            return environment
        threads = cores_per(self._cluster.engine_replicas)
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": f"{max(1, round(self._settings.kv_cache_gib))}",
            "OMP_NUM_THREADS": str(threads),
            # Split by the load of the batch, attention would round differently each time.
            "VLLM_CPU_ATTN_SPLIT_KV": "0",
        }
        if self._cluster.engine_replicas == 1:
            # Without it vLLM leaves one core unused.
            environment["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        return environment


def _reply_row(row: dict[str, Any]) -> dict[str, Any]:
    """Keep what we store of a good row; rows with an inference error bypass this."""
    kept = (ENTITY_ID, "generated_text", "num_input_tokens", "num_generated_tokens")
    return {name: row[name] for name in kept}


def _reply_columns(batch: pa.Table) -> pa.Table:
    """One set of columns for good and failed rows; the engine's own columns differ."""
    columns = {
        ENTITY_ID: batch[ENTITY_ID].cast(pa.string()),
        REPLY: batch["generated_text"].cast(pa.string()).fill_null(""),
        ERROR: batch["__inference_error__"].cast(pa.string()).fill_null(""),
        PROMPT_TOKENS: batch["num_input_tokens"].cast(pa.int64()).fill_null(0),
        GENERATED_TOKENS: batch["num_generated_tokens"].cast(pa.int64()).fill_null(0),
    }
    return pa.table(columns)
