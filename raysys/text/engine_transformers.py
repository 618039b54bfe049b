"""transformers' own generation: slower than vLLM, and runs wherever torch does."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.assets import model_path
from raysys.cluster import (
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

if TYPE_CHECKING:
    from ray.data import Dataset


class TransformersEngine:
    """Batches of `batch_size` chats, padded on the left, decoded together."""

    def __init__(
        self, settings: EngineSettings, cluster: ClusterSettings, sampling: SamplingSettings
    ) -> None:
        self._settings, self._sampling = settings, sampling
        self._actors = cluster.engine_replicas
        self.count = Tokens(settings.model, settings.revision)

    def identity(self) -> dict[str, Any]:
        """See `Engine.identity`."""
        settings = self._settings
        return {
            **model_identity(settings.model, settings.revision),
            "cpu_quantization": "none",
            **self._sampling.model_dump(),
        }

    def plan(self, stage: str, have: Resources) -> StagePlan:
        """Actors take a GPU each where there are any, else an equal share of the CPUs."""
        gpus = 1.0 if have.gpus else 0.0
        cpus = share(have, self._actors, reserved=0.0)
        return StagePlan(stage, (Pool("generator", self._actors, cpus, gpus, memory_gib=2.0),))

    def replies(self, requests: Dataset) -> Dataset:
        """See `Engine.replies`."""
        import ray.data

        pool = self.plan("", connected_resources()).pools[0]
        return requests.map_batches(
            Generator,
            fn_constructor_args=(self._settings, self._sampling, cores_per(self._actors)),
            batch_format="pyarrow",
            batch_size=self._settings.batch_size,
            compute=ray.data.ActorPoolStrategy(size=pool.actors),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )


class Generator:
    """A Ray Data actor that holds one model."""

    def __init__(self, settings: EngineSettings, sampling: SamplingSettings, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from raysys.models.precision import matrix_type

        torch.set_num_threads(threads)
        self._settings, self._sampling = settings, sampling
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        path = model_path(settings.model)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            path, revision=settings.revision, padding_side="left"
        )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, revision=settings.revision, dtype=matrix_type(torch.device(self._device))
        )
        self._model = model.to(self._device).eval()
        self._grammars: dict[str, Any] = {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a block of requests; those of one form are decoded together."""
        groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        answers = []
        for row in batch.to_pylist():
            if row[KEY]:  # an empty key fills a block up; see `raysys.text.generation`
                groups[row[SCHEMA], row[MAX_TOKENS]].append(row)
        for (schema, most), rows in groups.items():
            answers += self._answers(rows, schema, most)
        return pa.Table.from_pylist(answers, schema=REPLY_SCHEMA)

    def _answers(self, rows: list[dict[str, Any]], schema: str, most: int) -> list[dict[str, Any]]:
        import torch

        inputs = self._tokenizer.apply_chat_template(
            [json.loads(row[MESSAGES]) for row in rows],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=True,
        ).to(self._device)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        fits = [length + most <= self._settings.max_model_len for length in lengths]
        if not all(fits):
            short = [row for row, fit in zip(rows, fits, strict=True) if fit]
            problem = f"over the maximum context length of {self._settings.max_model_len} tokens"
            long = [
                _answer(row, error=problem) for row, fit in zip(rows, fits, strict=True) if not fit
            ]
            return long + (self._answers(short, schema, most) if short else [])
        sampling = self._sampling
        warm = sampling.temperature > 0
        if warm:
            torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                max_new_tokens=most,
                do_sample=warm,
                temperature=sampling.temperature if warm else None,
                top_p=None,
                top_k=None,
                repetition_penalty=sampling.repetition_penalty,
                pad_token_id=self._tokenizer.pad_token_id,
                logits_processor=self._grammar(schema),
            )
        written = output[:, inputs["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        used = (written != self._tokenizer.pad_token_id).sum(dim=1).tolist()
        return [
            _answer(row, text, length, count)
            for row, text, length, count in zip(rows, texts, lengths, used, strict=True)
        ]

    def _grammar(self, schema: str) -> list[Any]:
        """What keeps the reply in form; nothing where xgrammar, which comes with vLLM, is not."""
        try:
            import xgrammar
            from xgrammar.contrib.hf import LogitsProcessor
        except ImportError:
            return []
        if schema not in self._grammars:
            info = xgrammar.TokenizerInfo.from_huggingface(
                self._tokenizer, vocab_size=self._model.config.vocab_size
            )
            compiler = xgrammar.GrammarCompiler(info)
            self._grammars[schema] = compiler.compile_json_schema(schema, any_whitespace=False)
        return [LogitsProcessor(self._grammars[schema])]


def _answer(
    row: dict[str, Any], text: str = "", prompt: int = 0, generated: int = 0, error: str = ""
) -> dict[str, Any]:
    return {
        KEY: row[KEY],
        REPLY: text,
        ERROR: error,
        PROMPT_TOKENS: prompt,
        GENERATED_TOKENS: generated,
    }
