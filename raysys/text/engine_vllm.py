"""vLLM through `ray.data.llm`, with prefix caching and JSON-schema decoding."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

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
from raysys.schema import GENERATED_TOKENS, PROMPT_TOKENS
from raysys.text.engine import (
    ERROR,
    KEY,
    MAX_TOKENS,
    MESSAGES,
    REPLY,
    REPLY_SCHEMA,
    SCHEMA,
    EngineSettings,
    SamplingSettings,
    Tokens,
    model_identity,
)
from raysys.text.orphans import EXIT_WITH_PARENT
from raysys.text.quantize import int8_model

if TYPE_CHECKING:
    from ray.data import Dataset

#: Blocks of 128 tokens, the default, would compute most of a shared prompt again; steps of more
#: tokens than these fall out of the processor's caches and are a tenth slower (measured).
CPU_ARGUMENTS = {"block_size": 32, "max_num_batched_tokens": 512}

#: How often Ray asks a batch again whose engine or node has died.
_RETRIES = 1


class VllmEngine:
    """vLLM on the cluster's GPUs, or on its CPUs where there is no GPU."""

    def __init__(
        self, settings: EngineSettings, cluster: ClusterSettings, sampling: SamplingSettings
    ) -> None:
        self._settings, self._cluster, self._sampling = settings, cluster, sampling
        self.count = Tokens(settings.model, settings.revision)

    def identity(self) -> dict[str, Any]:
        """See `Engine.identity`."""
        settings = self._settings
        return {
            **model_identity(settings.model, settings.revision),
            "cpu_quantization": settings.cpu_quantization,
            **self._sampling.model_dump(),
        }

    def plan(self, stage: str, have: Resources) -> StagePlan:
        """Engines take the GPUs, or an equal share of the CPUs where there are none."""
        settings, replicas = self._settings, self._cluster.engine_replicas
        if have.gpus:
            gpus = settings.tensor_parallel * settings.pipeline_parallel
            engine = Pool("engine", replicas, 1.0, gpus=gpus)
        else:
            cpus = share(have, replicas, reserved=0.0)
            # Measured: weights, runtime and compiled grammars take about 2 GiB beside the cache.
            engine = Pool("engine", replicas, cpus, memory_gib=settings.kv_cache_gib + 2)
        return StagePlan(stage, (engine,))

    def replies(self, requests: Dataset) -> Dataset:
        """See `Engine.replies`."""
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        engine = self.plan("", connected_resources()).pools[0]
        settings = self._settings
        on_gpu = engine.gpus > 0
        bundle = {"CPU": engine.cpus, **({"GPU": 1} if on_gpu else {})}
        config = vLLMEngineProcessorConfig(
            model_source=self.model(on_gpu),
            engine_kwargs=self.arguments(on_gpu),
            concurrency=(engine.actors, engine.actors),
            batch_size=settings.batch_size,
            # Twice what the engine decodes at once: it never waits for Ray Data.
            max_concurrent_batches=max(2, 2 * settings.max_num_seqs // settings.batch_size),
            runtime_env={"env_vars": self.environment(on_gpu)},
            placement_group_config={"bundles": [bundle] * max(1, int(engine.gpus))},
            should_continue_on_error=True,
            log_engine_metrics=False,
            # vLLM tokenises and detokenises itself, and `chat` fills the template in: three more
            # actor pools would cost memory, and each a pause in every round.
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        sampling = self._sampling.model_dump()
        tokens = self.count

        def request(row: dict[str, Any]) -> dict[str, Any]:
            return {
                KEY: row[KEY],
                "prompt": tokens.chat(json.loads(row[MESSAGES])),
                "sampling_params": {
                    **sampling,
                    "max_tokens": row[MAX_TOKENS],
                    # As a string: a nested dict does not survive the trip through Arrow.
                    "structured_outputs": {"json": row[SCHEMA]},
                },
            }

        # One process each: more would only take time to start and memory, and Ray Data joins
        # tasks of the same shape into one.
        small: dict[str, Any] = {"num_cpus": SMALL_CPUS, "concurrency": 1}
        processor = build_processor(
            config,
            preprocess=request,
            postprocess=_reply_row,
            preprocess_map_kwargs=small,
            postprocess_map_kwargs=small,
        )
        # By default a batch on which the engine dies is tried for ever, and nobody is told. As many
        # restarts as retries: an engine that is up again when its batch is given up would stay, and
        # its CPUs be missing for the next.
        stage = processor.get_stage_by_name(processor.list_stage_names()[-1])
        stage.map_batches_kwargs.update(max_restarts=_RETRIES, max_task_retries=_RETRIES)
        return processor(requests).map_batches(
            _reply_columns, batch_format="pyarrow", batch_size=None, **small
        )

    def model(self, on_gpu: bool) -> str:
        """The folder or hub id that vLLM loads."""
        path = model_path(self._settings.model)
        return path if on_gpu or self._settings.cpu_quantization == "none" else int8_model(path)

    def arguments(self, on_gpu: bool) -> dict[str, Any]:
        """What vLLM is started with, beside the model."""
        from raysys.models.precision import has_amx

        settings = self._settings
        engines = settings.tensor_parallel * settings.pipeline_parallel
        return {
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            # vLLM's products of 8-bit weights on AMX take nothing else.
            "dtype": "bfloat16" if on_gpu or has_amx() else "float32",
            "enable_prefix_caching": settings.prefix_caching,
            **({} if on_gpu else CPU_ARGUMENTS),
            **({"revision": settings.revision} if settings.revision else {}),
            "distributed_executor_backend": "uni" if engines == 1 else "ray",
            "tensor_parallel_size": settings.tensor_parallel,
            "pipeline_parallel_size": settings.pipeline_parallel,
            # On CPU there is nothing to capture; compiling would only delay the start.
            "enforce_eager": not on_gpu,
            # Free whitespace between JSON tokens lets a small model write blanks for ever.
            "structured_outputs_config": {
                "backend": "xgrammar",
                "disable_any_whitespace": True,
            },
            "disable_log_stats": True,
            # Nobody reads a reply before it is whole; each token alone would wake two processes.
            "stream_interval": settings.max_model_len,
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
    kept = (KEY, "generated_text", "num_input_tokens", "num_generated_tokens")
    return {name: row[name] for name in kept}


def _reply_columns(batch: pa.Table) -> pa.Table:
    """One set of columns for good and failed rows; the engine's own columns differ."""
    columns = {
        KEY: batch[KEY].cast(pa.string()),
        REPLY: batch["generated_text"].cast(pa.string()).fill_null(""),
        ERROR: batch["__inference_error__"].cast(pa.string()).fill_null(""),
        PROMPT_TOKENS: batch["num_input_tokens"].cast(pa.int64()).fill_null(0),
        GENERATED_TOKENS: batch["num_generated_tokens"].cast(pa.int64()).fill_null(0),
    }
    return pa.table(columns).cast(REPLY_SCHEMA)
