"""The embedding stage: profile texts become vectors, by sentence-transformers actors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from raysys.assets import model_path
from raysys.cluster import ClusterSettings, Pool, Resources, StagePlan, cores_per, preflight, share
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.manifest import StageReport
from raysys.observe import progress
from raysys.schema import TRAIN, VALID
from raysys.settings import Settings
from raysys.store import write_arrays
from raysys.text.profiles import summaries_in_order
from raysys.text.quality import heldout_auc, tfidf_scores, vector_figures

#: Arrays `users` (U, s) and `items` (I, s) float32; `user_has_profile` (U,) and
#: `item_has_profile` (I,) uint8. Rows without a profile are zero.
VECTORS_FILE = "vectors.safetensors"
_ROW, _TEXT, _VECTOR = "row", "text", "vector"


class EmbeddingSettings(Settings):
    """The text encoder."""

    model: str = "all-minilm-l6-v2"
    """An asset name, a local folder, or a hub id that sentence-transformers loads."""
    batch_size: int = Field(default=64, ge=1)
    """Texts encoded together."""
    user_vectors: Path | None = None
    """Your own vectors: parquet with `user_id` and `vector`, a list of numbers. No profile is
    written and no text encoded then; see `raysys.text.vectors`."""
    item_vectors: Path | None = None
    """The same with `item_id`. One of the two is enough: the other side has no profiles."""
    users_from_items: bool = False
    """With your own vectors: a user without one gets the mean of the train items' vectors."""

    @property
    def own(self) -> dict[str, Path]:
        """The files of your own vectors by key; empty where profiles are embedded."""
        given = {"user_vectors": self.user_vectors, "item_vectors": self.item_vectors}
        return {key: path for key, path in given.items() if path is not None}


class Encoder:
    """A Ray Data actor that holds one encoder."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self._model = SentenceTransformer(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add a column of vectors (n, s) float32 of length 1."""
        texts = list(batch[_TEXT])
        vectors = self._model.encode(
            texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return {_ROW: batch[_ROW], _VECTOR: vectors.astype(np.float32)}


def plan_embedding(cluster: ClusterSettings, have: Resources) -> StagePlan:
    """Encoders take the GPUs where there are any, else an equal share of the CPUs."""
    workers = cluster.embedding_workers
    gpus = 1.0 if have.gpus else 0.0
    pool = Pool("encoder", workers, share(have, workers, reserved=0.0), gpus, memory_gib=1.0)
    return StagePlan("embeddings", (pool,))


def embed_profiles(
    settings: EmbeddingSettings,
    cluster: ClusterSettings,
    have: Resources,
    dataset: Dataset,
    item_profiles: Path,
    user_profiles: Path,
    output: Path,
) -> StageReport:
    """Encode every summarization; users and items without one get a zero row and flag 0."""
    plan = plan_embedding(cluster, have)
    preflight(plan, have)
    users = summaries_in_order(user_profiles, dataset.user_ids)
    items = summaries_in_order(item_profiles, dataset.item_ids)
    texts = users + items
    if not any(text is not None for text in texts):
        raise UserError(
            "no profile was written, so there is nothing to embed: see dead_letter.parquet."
        )
    known = np.array([text is not None for text in texts], dtype=bool)
    vectors = encode([text for text in texts if text is not None], settings, plan.pools[0])
    full = np.zeros((len(texts), vectors.shape[1]), np.float32)
    full[known] = vectors
    split = len(users)
    write_vectors(output, full[:split], full[split:], known[:split], known[split:])
    return StageReport(
        counts={"in": len(texts), "ok": int(known.sum()), "dead_letter": int((~known).sum())},
        dropped={"no_profile": int((~known).sum())} if not known.all() else {},
        figures={
            "width": float(vectors.shape[1]),
            **quality(dataset, full[:split], full[split:], items),
        },
    )


def quality(
    dataset: Dataset, users: np.ndarray, items: np.ndarray, texts: list[str | None]
) -> dict[str, float]:
    """What the vectors are worth before any training; validation's items are the held-out ones.

    Args:
        users, items: (U, s) and (I, s); rows without a profile are zero.
        texts: (I,) the items' profiles.

    Returns:
        `items_distinctness`, `users_distinctness`; `auc_user_profiles`: a user's profile nearer
        to a held-out item than to a random one; `auc_item_profiles`: the same with the mean of the
        train items' vectors for the user, and `auc_tfidf` with the words of their profiles.
    """
    held_users, held_items = dataset.pairs(VALID)
    known = dataset.matrix(TRAIN)
    means = known @ items

    def nearness(mine: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return lambda rows, columns: np.einsum("ij,ij->i", mine[rows], items[columns])

    scores = {"user_profiles": nearness(users), "item_profiles": nearness(means)}
    by_words = tfidf_scores(texts, known)
    if by_words is not None:
        scores["tfidf"] = by_words
    return {
        **{
            f"{name}_{key}": value
            for name, rows in (("items", items), ("users", users))
            for key, value in vector_figures(rows[np.any(rows != 0, axis=1)]).items()
        },
        **{
            f"{key}_{name}": value
            for name, score in scores.items()
            for key, value in heldout_auc(score, held_users, held_items, known).items()
        },
    }


def write_vectors(
    output: Path,
    users: np.ndarray,
    items: np.ndarray,
    user_has_profile: np.ndarray,
    item_has_profile: np.ndarray,
) -> None:
    """Write `VECTORS_FILE` into `output`: (U, s) and (I, s) float32, (U,) and (I,) bool."""
    arrays = {
        "users": users,
        "items": items,
        "user_has_profile": user_has_profile.astype(np.uint8),
        "item_has_profile": item_has_profile.astype(np.uint8),
    }
    write_arrays(output / VECTORS_FILE, arrays)


def encode(texts: list[str], settings: EmbeddingSettings, pool: Pool) -> np.ndarray[Any, Any]:
    """Encode texts on Ray Data actors.

    Returns:
        (n, s) float32, rows of length 1, in the order of `texts`.
    """
    import ray.data

    # Long texts first: batches of equal length waste no padding.
    order = np.argsort([-len(text) for text in texts], kind="stable")
    blocks = [
        pa.table({_ROW: rows, _TEXT: [texts[row] for row in rows]})
        for rows in np.array_split(order, max(1, -(-len(order) // settings.batch_size)))
    ]
    encoded = ray.data.from_arrow(blocks).map_batches(
        Encoder,
        fn_constructor_args=(model_path(settings.model), cores_per(pool.actors)),
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        batch_size=settings.batch_size,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    vectors: np.ndarray[Any, Any] | None = None
    done = 0
    with progress("embeddings", len(texts)) as tracker:
        for batch in encoded.iter_batches(batch_size=None, batch_format="numpy"):
            found = np.stack(list(batch[_VECTOR]))
            if vectors is None:
                vectors = np.zeros((len(texts), found.shape[1]), np.float32)
            vectors[batch[_ROW]] = found
            done += len(found)
            tracker.update(done)
    if vectors is None or done != len(texts):
        raise RuntimeError(f"embeddings: {done} of {len(texts)} texts came back")
    return vectors
