"""ELMRec: an encoder–decoder that reads the interaction graph through its input embeddings.

Wang, Cui, Fukumoto and Suzuki, 2024. B rows of S tokens, N = U + I graph nodes, d the width of the
language model, P prompt vectors a task. A *whole word* is a user or an item: all tokens of its id
get the same vector ω on top (§3.2), so that tokens of one id find each other, and, where ω comes
from the graph (§4.1), so do users and items that are close in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from raysys.graph.bipartite import BipartiteGraph
from raysys.graph.propagation import Adjacency, full_adjacency, propagate_sum, without_pairs
from raysys.settings import Settings

DIRECT, SEQUENTIAL, EXPLANATION = "direct", "sequential", "explanation"
TASKS = (DIRECT, SEQUENTIAL, EXPLANATION)
#: Marks places of `labels` that are no token.
NO_LABEL = -100


class TaskSettings(Settings):
    """How one task reads whole words."""

    whole_words: Literal["graph", "incremental", "random", "none"] = "graph"
    """`graph`: embeddings of the graph's nodes. `incremental`: a table by order of appearance.
    `random`: the same table in a random order for each row. `none`: no such vectors."""
    alpha: float = Field(default=9.0, ge=0)
    """Weight of the whole-word vectors beside the tokens' own."""


class WordSettings(Settings):
    """Whole-word embeddings and soft prompts. Defaults: the paper's for Beauty."""

    direct: TaskSettings = TaskSettings()
    """Which of the candidates does the user take?"""
    sequential: TaskSettings = TaskSettings(whole_words="incremental", alpha=6.0)
    """Which item comes next?"""
    explanation: TaskSettings = TaskSettings()
    """Why does the user take the item?"""
    attach: Literal["add", "prepend"] = "add"
    """`add`: to the tokens of the word. `prepend`: once a word, before all tokens (Table 5)."""
    sigma: float = Field(default=6.0, gt=0)
    """Standard deviation of the start of the graph's embeddings (Eq. 4)."""
    start: float = Field(default=1.0, gt=0)
    """Standard deviation of the start of all other vectors here: ordinals, prompts, no word."""
    layers: int = Field(default=4, ge=0, le=16)
    """Propagation steps L (Eq. 5)."""
    fixed_width: int | None = Field(default=None, ge=1)
    """None: the start is trained, as wide as the model. A number: the start is random, so many
    columns wide, and stays; a trained matrix widens it. For graphs too large for the former."""
    prompt_vectors: int = Field(default=3, ge=0, le=100)
    """Trained vectors P before the tokens, for each task."""


@dataclass(frozen=True)
class TaskBatch:
    """Rows of one task.

    Attributes:
        task: one of `TASKS`.
        tokens: (B, S) int64.
        mask: (B, S) bool, False where a shorter row is filled up.
        nodes: (B, S) int64, 1 + graph node of the word that a token belongs to, 0 for none.
        order: (B, S) int64, place of the word in the row from 1, 0 for none.
        word_nodes, word_order: (B, W) int64, the same once a word, filled up with 0.
        users, items: (n,) int64 rows: pairs that are taught, and so no edges while they are.
        labels: (B, T) int64 tokens to write, filled up with `NO_LABEL`.
    """

    task: str
    tokens: torch.Tensor
    mask: torch.Tensor
    nodes: torch.Tensor
    order: torch.Tensor
    word_nodes: torch.Tensor
    word_order: torch.Tensor
    users: torch.Tensor
    items: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> TaskBatch:
        """The same batch on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def rows(self, chosen: slice) -> TaskBatch:
        """Some of the rows; what is taught stays, so that all parts of a batch read one graph."""
        part = self._each(lambda tensor: tensor[chosen])
        return replace(part, users=self.users, items=self.items)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TaskBatch:
        names = [one.name for one in fields(self) if one.name != "task"]
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)


class GraphWords(torch.nn.Module):
    """Whole-word embeddings by random feature propagation (§4.1, Eq. 4–7).

    ω = (1 / (L + 1)) Σ_l Â^l X, X ~ N(0, σ²), of the graph with the taught pairs left out.

    Args:
        graph: the train edges.
        message: the edges that are read in training; None: all but those that a batch teaches.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        message: BipartiteGraph | None,
        settings: WordSettings,
        width: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.graph, self._message, self._layers = graph, message, settings.layers
        start = torch.randn(graph.nodes, settings.fixed_width or width, generator=generator)
        start *= settings.sigma
        self.projection: torch.nn.Parameter | None = None
        if settings.fixed_width is None:
            self.start = torch.nn.Parameter(start)
        else:
            self.register_buffer("start", start)
            drawn = torch.randn(settings.fixed_width, width, generator=generator)
            self.projection = torch.nn.Parameter(drawn / settings.fixed_width**0.5)
        self._kept: torch.Tensor | None = None

    def train(self, mode: bool = True) -> GraphWords:
        """Forget what was kept: parameters may change, and another graph is read."""
        if mode != self.training:
            self._kept = None
        super().train(mode)
        return self

    def forward(
        self, nodes: torch.Tensor, taught: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """ω of nodes.

        Args:
            nodes: (...,) int64.
            taught: users and items, (B,) each, that are no edges in this step; in evaluation they
                are not looked at, since nothing is taught and the graph holds train edges alone.

        Returns:
            (..., d).
        """
        rows = F.embedding(nodes, self._propagated(taught))
        return rows if self.projection is None else rows @ self.projection

    def _propagated(self, taught: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if not self.training:
            return self._once(full_adjacency(self.graph))
        if self._message is None:
            return self._mean(without_pairs(self.graph, *taught))
        if self.projection is None:
            return self._mean(full_adjacency(self._message))
        return self._once(full_adjacency(self._message))

    def _once(self, adjacency: Adjacency) -> torch.Tensor:
        if self._kept is None:
            with torch.no_grad():
                self._kept = self._mean(adjacency)
        return self._kept

    def _mean(self, adjacency: Adjacency) -> torch.Tensor:
        return propagate_sum(adjacency, self.start, self._layers) / (self._layers + 1)


class ELMRec(torch.nn.Module):
    """A sequence-to-sequence model of the T5 family with whole-word embeddings.

    Args:
        language_model: takes `inputs_embeds`; trained in place.
        words: the whole words of the graph.
        settings: see `WordSettings`.
        most_words: users and items in a row, at most.
        generator: source of the start values.
    """

    def __init__(
        self,
        language_model: Any,
        words: GraphWords,
        settings: WordSettings,
        most_words: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.language_model, self.words, self.settings = language_model, words, settings
        width = language_model.config.d_model

        def drawn(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(shape, generator=generator) * settings.start)

        self.ordinal = drawn(most_words, width)
        #: ω₀ of tokens that belong to no word, by kind of whole words (Eq. 8).
        self.other = drawn(2, width)
        self.prompts = drawn(len(TASKS), settings.prompt_vectors, width)

    def encoded(self, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder reads.

        Returns:
            states (B, P + S, d), or (B, P + W + S, d) with words before the tokens; and their
            mask, 0 or 1.
        """
        embeds, mask = self.inputs(batch)
        states = self.language_model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        return states.last_hidden_state, mask

    def inputs(self, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """[p₁ … p_P, x₁ + α ω₁, …], the encoder's input, and its mask; see `encoded`."""
        task: TaskSettings = getattr(self.settings, batch.task)
        tokens = self.language_model.get_input_embeddings()(batch.tokens)
        prompts = self.prompts[TASKS.index(batch.task)].expand(len(tokens), -1, -1)
        mask = torch.nn.functional.pad(batch.mask, (prompts.shape[1], 0), value=True)
        if task.whole_words == "none":
            return torch.cat([prompts, tokens], dim=1), mask.long()
        if self.settings.attach == "add":
            tokens = tokens + task.alpha * self._words(task, batch, batch.nodes, batch.order)
            return torch.cat([prompts, tokens], dim=1), mask.long()
        words = task.alpha * self._words(task, batch, batch.word_nodes, batch.word_order)
        mask = torch.cat([mask[:, : prompts.shape[1]], batch.word_order > 0, batch.mask], dim=1)
        return torch.cat([prompts, words, tokens], dim=1), mask.long()

    def _words(
        self, task: TaskSettings, batch: TaskBatch, nodes: torch.Tensor, order: torch.Tensor
    ) -> torch.Tensor:
        """ω of each place, (B, ·, d)."""
        if task.whole_words == "graph":
            found = self.words((nodes - 1).clamp(min=0), (batch.users, batch.items))
            return torch.where(nodes[..., None] > 0, found, self.other[0])
        found = F.embedding((order - 1).clamp(min=0), self.ordinal)
        return torch.where(order[..., None] > 0, found, self.other[1])

    def losses(self, batch: TaskBatch) -> torch.Tensor:
        """−(1 / |Y|) Σ_t log p(y_t | y_<t, X) of each row, (B,) (Eq. 1)."""
        states, mask = self.encoded(batch)
        written = batch.labels != NO_LABEL
        start = self.language_model.config.decoder_start_token_id
        before = F.pad(batch.labels[:, :-1], (1, 0), value=start)
        found = self.language_model(
            encoder_outputs=(states,),
            attention_mask=mask,
            decoder_input_ids=before.masked_fill(before == NO_LABEL, 0),
            use_cache=False,
        )
        tokens = F.cross_entropy(
            found.logits.flatten(0, 1).float(),
            batch.labels.flatten(),
            ignore_index=NO_LABEL,
            reduction="none",
        )
        return tokens.view_as(batch.labels).sum(dim=1) / written.sum(dim=1)
