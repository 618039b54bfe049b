"""Supervised fine-tuning of a yes/no language model with LoRA: no Ray, resumable at any step.

LLM-TRSR §4.3, Eq. 1. What an optimiser step sees is decided by (seed, epoch, step) alone. How the
step is cut into forward passes (by length, prompts with a common prefix in one row, over several
workers) changes the speed and not the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from raysys.errors import UserError
from raysys.evaluation.candidates import WATCHED, question_metrics
from raysys.models.lora import LoraSettings, body_and_head, token_losses
from raysys.models.precision import mixed_precision
from raysys.models.yes_no import AnswerTokens, Question, YesNoScorer, pack
from raysys.training.epochs import EpochTraining, LoopSettings
from raysys.training.loop import mixed_seed
from raysys.training.sharding import shard_layers
from raysys.training.workers import Workers


class FinetuneSettings(LoopSettings):
    """How the language model is fine-tuned. Defaults: LLM-TRSR."""

    lora: LoraSettings = LoraSettings()
    """The adapters."""
    loss: Literal["prompt", "answer"] = "prompt"
    """`prompt`: on every token, the paper's Eq. 1. `answer`: on the answer alone."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """AdamW's step size at the start; it falls linearly to 0."""
    batch_size: int = Field(default=64, ge=1)
    """Prompts of an optimiser step, over all workers together; a question's prompts stay
    together, so it may be a few less."""
    pass_tokens: int = Field(default=2048, ge=1)
    """Tokens of one forward pass, padding included; a step takes as many passes as it needs."""
    bucketing: bool = True
    """A question's prompts are one row that holds their prefix once, and passes are of rows of
    like length; else each prompt is a row of its own, padded to `max_tokens`."""
    epochs: int = Field(default=8, ge=1)
    """Passes over the examples, at most."""
    patience: int = Field(default=2, ge=1)
    """Epochs without a better validation MRR@10 after which training stops."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp`: each worker keeps a share of every layer, for models larger than one GPU."""


#: Settings of how a model is fine-tuned, which leave what it learns as it is.
HOW = {
    *("pass_tokens", "bucketing", "gradient_checkpointing", "sharding"),
    *("checkpoint_every", "max_failures"),
}


class YesNoTraining(EpochTraining):
    """One fine-tuning run: model, optimiser, and how far it has come.

    Args:
        model: a peft model on its device; trained in place.
        questions: what is learnt.
        valid: questions for the early stop; none: all epochs, and the last is the best.
        answers: the answer tokens.
        settings: see `FinetuneSettings`.
        pad_id: fills up shorter rows.
        max_tokens: the longest prompt there can be.
        workers: this worker's place among all.
    """

    watched = WATCHED
    section = "yes_no.finetune"
    settings: FinetuneSettings

    def __init__(
        self,
        model: Any,
        questions: Sequence[Question],
        valid: Sequence[Question],
        answers: AnswerTokens,
        settings: FinetuneSettings,
        pad_id: int,
        max_tokens: int,
        workers: Workers | None = None,
    ) -> None:
        if not questions:
            raise UserError("there is no training example: no user has a history and a target.")
        self._questions, self._valid = list(questions), valid
        self._answers = answers
        self._scorer = YesNoScorer(model, answers, pad_id)
        self._pad_id, self._max_tokens = pad_id, max_tokens
        self._body, self._head = body_and_head(model)
        if settings.gradient_checkpointing:
            self._body.gradient_checkpointing_enable({"use_reentrant": False})
            # The frozen embeddings would cut the graph between the checkpoints.
            model.enable_input_require_grads()
        if settings.sharding == "fsdp":
            shard_layers(self._body)
        super().__init__(model, settings, workers)

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return steps_of_epoch(self._questions, self.settings.batch_size)

    @property
    def _sharded(self) -> bool:
        return self.settings.sharding != "none"

    def backward(self) -> tuple[torch.Tensor, float]:
        """Gradients of this worker's passes; its share of the mean loss a token, and the tokens."""
        passes = self.passes()
        tokens = sum(self._tokens(row) for rows in passes for row in rows)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, rows in self._mine(passes):
            torch.manual_seed(mixed_seed(self.settings.seed, self.epoch, self.step, number))
            loss = self._loss(rows) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total, tokens

    def passes(self) -> list[list[Question]]:
        """The rows of the next step, cut into forward passes."""
        settings = self.settings
        questions = self._questions
        order = np.random.default_rng([settings.seed, self.epoch]).permutation(len(questions))
        size = _questions_of_step(questions, settings.batch_size)
        rows = [questions[place] for place in order[self.step * size :][:size]]
        if settings.bucketing:
            rows.sort(key=lambda row: -row.length)
        else:
            rows = [one for row in rows for one in row.alone()]
        passes: list[list[Question]] = []
        room = 0
        for row in rows:
            if room < 1:
                room = max(1, settings.pass_tokens // self._width(row))
                passes.append([])
            passes[-1].append(row)
            room -= 1
        return passes

    def validate(self) -> float | None:
        """MRR@10 over the validation questions, each worker scoring its share."""
        if not self._valid:
            return None
        number, count = (
            (self.workers.number, self.workers.count)
            # Sharded layers are gathered by all workers together.
            if not self._sharded
            else (0, 1)
        )
        self.model.eval()
        figures = torch.zeros(2, dtype=torch.float64, device=self.device)
        for question in self._valid[number::count]:
            scores = self._scorer.shared(question.prefix, question.candidates)
            found = question_metrics(scores[None].cpu().numpy(), [question.target], [10])
            figures += torch.tensor([found[WATCHED][0], 1.0], device=self.device)
        if count > 1:
            self.workers.add_up(figures)
        return float(figures[0] / figures[1])

    def _mine(self, passes: list[list[Question]]) -> list[tuple[int, list[Question]]]:
        """This worker's passes with their numbers; with sharding as many on every worker."""
        mine = list(enumerate(passes))[self.workers.number :: self.workers.count]
        if self._sharded:
            most = math.ceil(len(passes) / self.workers.count)
            mine += [(len(passes), [])] * (most - len(mine))
        return mine

    def _width(self, row: Question) -> int:
        return row.length if self.settings.bucketing else self._max_tokens

    def _tokens(self, row: Question) -> int:
        """Tokens of a row's prompts that the loss is a sum over."""
        prompts = len(row.candidates)
        if self.settings.loss == "answer":
            return prompts
        return prompts * len(row.prefix) + sum(map(len, row.candidates))

    def _loss(self, rows: list[Question]) -> torch.Tensor:
        """Summed loss of one forward pass; of no rows, a zero that takes part in everything."""
        if not rows:
            return 0 * self._loss(self._questions[:1])
        packed = pack(rows, self._answers, self._pad_id, max(map(self._width, rows)))
        on = packed.to(self.device)
        with mixed_precision(self.device):
            kept = on.is_answer if self.settings.loss == "answer" else slice(None)
            states = on.states(self._body, self._head.weight.dtype)[kept]
            return token_losses(states, on.labels[kept], on.weights[kept], self._head)


def steps_of_epoch(questions: Sequence[Question], batch_size: int) -> int:
    """Optimiser steps that see every question once."""
    return math.ceil(len(questions) / _questions_of_step(questions, batch_size))


def _questions_of_step(questions: Sequence[Question], batch_size: int) -> int:
    return max(1, batch_size // len(questions[0].candidates))
