"""The graph-attentive language model: its inputs, what it is built of, a trained one, scores.

"LLM-Enhanced User-Item Interactions", sections 3.2 to 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysys.assets import loading, model_path
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.graph.relations import Relations
from raysys.models.graph_lm import GraphLM, as_batch
from raysys.models.lora import with_lora
from raysys.models.parameters import load_parameters
from raysys.models.precision import mixed_precision
from raysys.schema import FAMILY, PROMPT_SCHEMA, TOKENS, TRAIN
from raysys.store import fingerprint, read_arrays, read_json, read_table, write_table
from raysys.text.crowd_prompts import requests, write_crowd_prompts
from raysys.text.engine import tokenizer_of
from raysys.text.graph_prompts import GraphPrompts, load_graph_templates
from raysys.text.small_models import write_small_causal
from raysys.training.graph_lm_lessons import Crowd, Interactions, Lessons, Predict, question
from raysys.training.graph_lm_settings import CROWD, INTERACTIONS, GraphLMSettings, PredictStep
from raysys.training.ray_train import Placement

#: Folder of the small language model, where none is named; and the crowd contextual prompts.
LANGUAGE_MODEL, PROMPTS_FILE = "language_model", "prompts.parquet"
#: What a trained model is: parameters, and what they fit.
PARAMETERS_FILE, ABOUT_FILE = "graph_lm.safetensors", "graph_lm.json"
#: Prompts that are scored together.
_SCORED = 64


@dataclass(frozen=True)
class GraphLMJob:
    """What to train, as paths and settings.

    Attributes:
        dataset: data set folder.
        inputs: folder with the prompts and, where none is named, the language model.
        step: which of `GraphLMSettings.steps`.
        start: folder of the step before; none: the language model as it is.
    """

    dataset: Path
    inputs: Path
    settings: GraphLMSettings
    step: str
    start: Path | None
    placement: Placement

    def name(self) -> str:
        """The same only for the same job, so that no other job's checkpoint is used."""
        values = {
            "inputs": str(self.inputs),
            "start": str(self.start),
            "settings": self.settings.model_dump(mode="json"),
        }
        return f"graph-lm-{self.step}-{fingerprint(values)[:16]}"

    @property
    def source(self) -> str:
        """Name or path of the language model."""
        return self.settings.model or str(self.inputs / LANGUAGE_MODEL)


def write_inputs(settings: GraphLMSettings, dataset: Dataset, folder: Path) -> dict[str, int]:
    """Write the prompts of step 1 and, where no model is named, a small one into `folder`.

    Returns:
        prompts by kind.

    Raises:
        UserError: a column of the settings is not there, or the model is of another kind.
    """
    templates = load_graph_templates(settings.templates)
    if settings.model is None:
        texts = [
            *templates.model_dump(exclude={"version"}).values(),
            *requests(settings.crowd_prompts, dataset)["text"].to_pylist(),
        ]
        write_small_causal(
            folder / LANGUAGE_MODEL, settings.small, texts, settings.seed, settings.max_tokens
        )
    source = settings.model or str(folder / LANGUAGE_MODEL)
    check_context(settings, source)
    if CROWD in settings.steps:
        prompts = write_crowd_prompts(
            settings.crowd_prompts,
            dataset,
            (source, settings.revision),
            words_of(source, settings.revision),
            templates,
            settings.max_tokens,
        )
    else:
        prompts = PROMPT_SCHEMA.empty_table()
    write_table(folder / PROMPTS_FILE, prompts)
    kinds, counts = np.unique(prompts[FAMILY].to_pylist(), return_counts=True)
    return dict(zip(kinds.tolist(), counts.tolist(), strict=True))


def _config(source: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    with loading(source):
        return AutoConfig.from_pretrained(model_path(source), revision=revision)


def words_of(source: str, revision: str | None) -> int:
    """V: rows of a language model's embeddings."""
    return int(_config(source, revision).vocab_size)


def check_context(settings: GraphLMSettings, source: str) -> None:
    """Refuse prompts that are longer than what the model was made for, and other kinds of models.

    Raises:
        UserError: see above.
    """
    config = _config(source, settings.revision)
    if config.is_encoder_decoder:
        raise UserError(
            f"graph_lm.model: '{source}' is an encoder-decoder; a causal model is needed, such as "
            "openai-community/gpt2, or leave it out for a small one."
        )
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and settings.max_tokens > most:
        raise UserError(
            f"graph_lm.max_tokens {settings.max_tokens} is more than the {most} positions of "
            f"'{source}': lower it."
        )


@dataclass(frozen=True)
class Material:
    """What the model learns from and is asked with."""

    dataset: Dataset
    relations: Relations
    writer: GraphPrompts


@dataclass(frozen=True)
class Built(Material):
    """The same with a model."""

    model: GraphLM


def material(job: GraphLMJob) -> Material:
    """Data set, graph and prompt writer of a job.

    Raises:
        UserError: prompts do not fit into `max_tokens`.
    """
    settings, dataset = job.settings, Dataset.load(job.dataset)
    writer = GraphPrompts(
        tokenizer_of(job.source, settings.revision),
        words_of(job.source, settings.revision),
        len(dataset.user_ids),
        load_graph_templates(settings.templates),
        settings.max_tokens,
    )
    return Material(dataset, Relations(dataset.matrix(TRAIN), settings.relations), writer)


def lessons_of(job: GraphLMJob, found: Material) -> Lessons:
    """What the job's step learns.

    Raises:
        UserError: there is nothing to learn.
    """
    settings = job.settings.step(job.step)
    if job.step == CROWD:
        table = read_table(job.inputs / PROMPTS_FILE, PROMPT_SCHEMA.names)
        prompts = [np.array(one, np.int64) for one in table[TOKENS].to_pylist()]
        return Crowd(settings, prompts, found.writer, found.relations)
    if job.step == INTERACTIONS:
        return Interactions(settings, found.dataset, found.writer, found.relations)
    assert isinstance(settings, PredictStep)
    return Predict(settings, found.dataset, found.writer, found.relations)


def build(job: GraphLMJob, device: torch.device, trained: Path | None = None) -> Built:
    """The model as it starts, or with the parameters of a folder.

    Raises:
        UserError: the folder's model was trained on other users or items, or does not fit.
    """
    from transformers import AutoModelForCausalLM

    settings, found = job.settings, material(job)
    language_model: Any = AutoModelForCausalLM.from_pretrained(
        model_path(job.source),
        revision=settings.revision,
        dtype=torch.float32,
        attn_implementation=settings.attention,
    )
    if settings.lora is not None:
        language_model = with_lora(language_model, settings.lora, settings.seed)
    users, items = found.dataset.shape
    generator = torch.Generator().manual_seed(settings.seed)
    model = GraphLM(language_model, users, items, settings.softmax, generator)
    if trained is not None:
        about = read_json(trained / ABOUT_FILE)
        if about["dataset"] != found.dataset.identity():
            raise UserError(
                f"{trained} was trained on other users or items than {job.dataset} has: train it "
                "again."
            )
        load_parameters(model, read_arrays(trained / PARAMETERS_FILE), trained / PARAMETERS_FILE)
    return Built(found.dataset, found.relations, found.writer, model.to(device).eval())


@torch.inference_mode()
def history_scores(built: Built, users: np.ndarray) -> np.ndarray:
    """Scores of all items for some users, by their train history, (b, I) float32."""
    model, histories = built.model, built.dataset.histories(TRAIN)
    device = model.items.device
    model.eval()
    found = np.empty((len(users), len(model.items)), np.float32)
    lengths = np.array([len(histories[user]) for user in users])
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(users), _SCORED):
        part = order[start : start + _SCORED]
        prompts = [question(built.writer, int(users[one]), histories[users[one]]) for one in part]
        batch = as_batch(prompts, built.writer.words, built.relations.of_history)
        with mixed_precision(device):
            found[part] = model.scores(batch.to(device)).cpu().numpy()
    return found
