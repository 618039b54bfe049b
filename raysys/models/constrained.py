"""Decode only what exists: beam search over a trie of token sequences, and scores of given ones.

b users, K beams, V tokens of the vocabulary. A user's input is encoded once, and the decoder's keys
and values of it are computed once: beams share them. A sequence's score is Σ log p over its tokens,
each p over the whole vocabulary, whichever way it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Trie:
    """Token sequences as trees, as many as there are roots; nodes 0..R−1 are the roots.

    Edge e leads to node R + e; the edges of a node stand together.

    Attributes:
        first: (nodes + 1,) int64: node n has the edges first[n] to first[n + 1] − 1.
        tokens: (edges,) int64.
        ends: (nodes,) int64: the sequence that ends here, −1 for none.
        roots: R.
        depth: tokens of the longest sequence.
    """

    first: torch.Tensor
    tokens: torch.Tensor
    ends: torch.Tensor
    roots: int
    depth: int

    @classmethod
    def of(cls, sequences: np.ndarray, root_of: np.ndarray | None = None) -> Trie:
        """Build it, level by level.

        Args:
            sequences: (n, T) tokens, filled up with −1; each ends with a token that stands at the
                end only. Where two of a root are equal, the first is meant.
            root_of: (n,) root of each, from 0; None: one root.
        """
        parents = (
            np.zeros(len(sequences), np.int64) if root_of is None else root_of.astype(np.int64)
        )
        roots = int(parents.max(initial=0)) + 1
        base = max(1, int(sequences.max(initial=0)) + 1)
        lengths = (sequences >= 0).sum(axis=1)
        edges, nodes, ends = [], roots, [np.full(roots, -1)]
        alive = np.arange(len(sequences))
        for level in range(sequences.shape[1]):
            alive = alive[lengths[alive] > level]
            keys, inverse = np.unique(
                parents[alive] * base + sequences[alive, level], return_inverse=True
            )
            edges.append(keys)
            parents[alive] = nodes + inverse
            last = lengths[alive] == level + 1
            ending = np.full(len(keys), -1)
            # Backwards: of equal sequences the first is written last.
            ending[inverse[last][::-1]] = alive[last][::-1]
            ends.append(ending)
            nodes += len(keys)
        keys = np.concatenate(edges) if edges else np.empty(0, np.int64)
        first = np.searchsorted(keys // base, np.arange(nodes + 1))
        return cls(
            torch.from_numpy(first),
            torch.from_numpy(keys % base),
            torch.from_numpy(np.concatenate(ends)),
            roots,
            sequences.shape[1],
        )

    def to(self, device: torch.device) -> Trie:
        """The same on a device."""
        return replace(
            self,
            first=self.first.to(device),
            tokens=self.tokens.to(device),
            ends=self.ends.to(device),
        )


class Decoder:
    """The decoder's work on some encoded users, one token further at each step.

    Args:
        model: a sequence-to-sequence model.
        states: (b, S, d) of the encoder.
        mask: (b, S), 0 or 1.
    """

    def __init__(self, model: Any, states: torch.Tensor, mask: torch.Tensor) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        self._model, self._states, self._mask = model, states, mask
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._beams = 1

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities after one more token each, (b, k) -> (b, k, V) float32."""
        rows, beams = tokens.shape
        states = self._states
        if beams > 1:
            # Their keys and values are in the cache by now: nothing but the shape is read.
            states = states[:1, :1, :1].expand(rows * beams, *states.shape[1:])
        found = self._model(
            encoder_outputs=(states,),
            attention_mask=self._mask.repeat_interleave(beams, dim=0),
            decoder_input_ids=tokens.reshape(-1, 1),
            past_key_values=self._cache,
            use_cache=True,
        )
        logits = found.logits[:, -1].float()
        return torch.log_softmax(logits, dim=-1).view(rows, beams, -1)

    def follow(self, parents: torch.Tensor) -> None:
        """Go on from these beams, (b, k') with entries below k."""
        rows, beams = parents.shape
        offsets = torch.arange(rows, device=parents.device)[:, None]
        self._select(self._cache.self_attention_cache, (offsets * self._beams + parents).flatten())
        if beams != self._beams:
            # Beams of a user read the same input, so any of them will do.
            one = (offsets * self._beams).expand(-1, beams)
            self._select(self._cache.cross_attention_cache, one.flatten())
            self._beams = beams

    def _select(self, cache: Any, rows: torch.Tensor) -> None:
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]


@torch.no_grad()
def constrained_search(
    model: Any,
    states: torch.Tensor,
    mask: torch.Tensor,
    trie: Trie,
    roots: torch.Tensor,
    beams: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best sequences of each user's tree by beam search; exact where it has ≤ `beams` leaves.

    Args:
        states: (b, S, d) of the encoder; each user's input is there once.
        mask: (b, S), 0 or 1.
        roots: (b,) root of each user.
        beams: K sequences are kept at every length, and returned.

    Returns:
        numbers (b, K) int64 of the sequences, best first, −1 where there are fewer; and their
        scores (b, K), −inf there.
    """
    device, rows = states.device, len(states)
    decoder = Decoder(model, states, mask)
    nodes, scores = roots[:, None], torch.zeros(rows, 1, device=device)
    tokens = torch.full_like(nodes, model.config.decoder_start_token_id)
    best = torch.full((rows, beams), -torch.inf, device=device)
    found = torch.full((rows, beams), -1, device=device)
    for _ in range(trie.depth):
        chances = decoder.step(tokens)
        starts, ends = trie.first[nodes], trie.first[nodes + 1]
        width = int((ends - starts).max())
        edges = starts[:, :, None] + torch.arange(width, device=device)
        real = edges < ends[:, :, None]
        edges = edges.clamp(max=len(trie.tokens) - 1)
        reached = scores[:, :, None] + chances.gather(2, trie.tokens[edges])
        reached = reached.masked_fill(~real, -torch.inf).flatten(1)
        scores, chosen = reached.topk(min(beams, reached.shape[1]), dim=1)
        edges = edges.flatten(1).gather(1, chosen)
        nodes, tokens = trie.roots + edges, trie.tokens[edges]
        ended = trie.ends[nodes]
        finished = torch.where(ended >= 0, scores, -torch.inf)
        pool = torch.cat([best, finished], dim=1)
        best, places = pool.topk(beams, dim=1)
        found = torch.cat([found, ended], dim=1).gather(1, places)
        scores = scores.masked_fill(ended >= 0, -torch.inf)
        if not torch.isfinite(scores).any():
            break
        decoder.follow(chosen // width)
    return found.masked_fill(~torch.isfinite(best), -1), best


@torch.no_grad()
def sequence_scores(
    model: Any, states: torch.Tensor, mask: torch.Tensor, sequences: torch.Tensor
) -> torch.Tensor:
    """Scores of given sequences by teacher forcing.

    Args:
        states: (b, S, d); mask: (b, S).
        sequences: (b, n, T) tokens, filled up with −1.

    Returns:
        (b, n) float32, Σ log p over the tokens of each.
    """
    rows, count, length = sequences.shape
    decoder = Decoder(model, states, mask)
    start = torch.full((rows, 1), model.config.decoder_start_token_id, device=states.device)
    chances = decoder.step(start)
    scores = _chosen(chances.expand(-1, count, -1), sequences[:, :, 0])
    decoder.follow(torch.zeros(rows, count, dtype=torch.int64, device=states.device))
    for place, following in pairwise(range(length)):
        chances = decoder.step(sequences[:, :, place].clamp(min=0))
        scores += _chosen(chances, sequences[:, :, following])
    return scores


def _chosen(chances: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(b, n, V), (b, n) -> (b, n): 0 where there is no token."""
    found = chances.gather(2, tokens.clamp(min=0)[:, :, None])[:, :, 0]
    return found.masked_fill(tokens < 0, 0.0)


def without_known(found: np.ndarray, known: list[np.ndarray], k: int) -> np.ndarray:
    """Rerank by leaving out what a user has (§4.2, Eq. 12): the order of the rest stays.

    Args:
        found: (b, k + N) item rows, best first, −1 for none.
        known: item rows of each user.
        k: length of the lists.

    Returns:
        (b, k) item rows, filled up with −1.
    """
    lists = np.full((len(found), k), -1, dtype=np.int64)
    for row, (items, own) in enumerate(zip(found, known, strict=True)):
        kept = items[(items >= 0) & ~np.isin(items, own)][:k]
        lists[row, : len(kept)] = kept
    return lists
