"""Settings of the graph-attentive language model: what it is, what it learns, how it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from raysys.graph.relations import RelationSettings
from raysys.models.graph_lm import ItemSoftmaxSettings
from raysys.models.lora import LoraSettings
from raysys.settings import Settings
from raysys.text.crowd_prompts import CrowdSettings
from raysys.text.small_models import SmallSettings
from raysys.training.epochs import LoopSettings

CROWD, INTERACTIONS, PREDICT = "crowd", "interactions", "predict"
Step = Literal["crowd", "interactions", "predict"]


class StepSettings(LoopSettings):
    """Training of one of the three steps."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's step size at the start."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's."""
    batch_size: int = Field(default=64, ge=1)
    """Prompts of an optimiser step, over all workers together."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Optimiser steps between checkpoints: what a crash can cost."""


class CrowdStep(StepSettings):
    """Step 1: the next token of crowd contextual prompts."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the prompts."""


class InteractionsStep(StepSettings):
    """Step 2: the items of "a user has interacted with …"."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the users, at most."""
    content_weight: float = Field(default=0.1, ge=0)
    """λ of λ‖e - e_content‖²: how strongly users and items are held where step 1 left them."""


class PredictStep(StepSettings):
    """Step 3: personalised predictive prompts."""

    epochs: int = Field(default=50, ge=1)
    """Passes over the users, at most."""
    hidden_share: float = Field(default=0.2, gt=0, lt=1)
    """Of a history, not shown; the rest is shown in a random order."""
    targets: Literal["all", "hidden"] = "all"
    """What is to be predicted: all train items of the user, or those that are not shown."""


class GraphLMSettings(Settings):
    """The graph-attentive language model. Defaults: the paper's, as far as it says."""

    model: str | None = None
    """A causal model: an asset name such as `smollm2-135m-instruct`, a local folder, or a hub id
    such as `openai-community/gpt2`; none: a small GPT-2 with random weights, see `small`."""
    revision: str | None = None
    """Of a hub model."""
    small: SmallSettings = SmallSettings()
    """Size of the model where `model` is none."""
    lora: LoraSettings | None = None
    """Train low-rank adapters, and the tables of users and items; none: everything."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Which of transformers' attentions adds R."""
    relations: RelationSettings = RelationSettings()
    """R: `kind`, `delta`, `hops`."""
    steps: tuple[Step, ...] = Field(default=("crowd", "interactions", "predict"), min_length=1)
    """What is learnt, in this order. Without `predict`: no fine-tuning; with it alone: no
    pre-training."""
    templates: Path | None = None
    """A file of prompts; none: those of raysys."""
    max_tokens: int = Field(default=1024, ge=16)
    """Of a prompt: the history is cut to fit, what asks for items never is."""
    crowd_prompts: CrowdSettings = CrowdSettings()
    """Which prompts step 1 reads."""
    crowd: CrowdStep = CrowdStep()
    """Step 1."""
    interactions: InteractionsStep = InteractionsStep()
    """Step 2."""
    predict: PredictStep = PredictStep()
    """Step 3."""
    softmax: ItemSoftmaxSettings = ItemSoftmaxSettings()
    """The softmax over items."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp`: each worker keeps a share of every layer, for models larger than one GPU."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    valid_users: int | None = Field(default=1000, ge=1)
    """Users whose validation Recall@20 decides when to stop, drawn by `seed`; none: all."""
    ks: tuple[int, ...] = Field(default=(20, 40, 100), min_length=1)
    """Cut-offs."""
    lists: int = Field(default=20, ge=1, le=1000)
    """Length of the lists that are written for all users."""
    seed: int = Field(default=2023, ge=0)
    """Draws the tables and users."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        order = [CROWD, INTERACTIONS, PREDICT]
        if list(self.steps) != [step for step in order if step in self.steps]:
            raise ValueError(f"steps must be some of {', '.join(order)}, each once, in this order")
        return self

    def step(self, name: str) -> StepSettings:
        """The settings of a step."""
        found: StepSettings = getattr(self, name)
        return found
