"""Stage `yes_no_lists`: the fine-tuned yes/no model reorders the best items of a retriever.

LLM-TRSR measures 21 sampled candidates; here the candidates are what a model retrieved out of the
whole catalogue, so that its lists stand beside those of other methods.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from raysys.data.candidates import drawn_users
from raysys.data.dataset import Dataset
from raysys.evaluation.kept_lists import write_test_lists
from raysys.manifest import Manifest, StageReport
from raysys.models.saved import load_model
from raysys.models.yes_no import Question
from raysys.ranking.fuse import fuse, order_of
from raysys.ranking.retrieve import NO_ITEM, retrieve
from raysys.schema import TEST, TRAIN, VALID
from raysys.stages.blocks import in_blocks
from raysys.stages.context import RunContext
from raysys.stages.train import best_model
from raysys.stages.yes_no import EXAMPLES, MODEL
from raysys.text.engine import tokenizer_of
from raysys.text.profiles import summaries_in_order
from raysys.text.yes_no import YesNoPrompts
from raysys.training.yes_no import ADAPTER_FOLDER, LoadedModel
from raysys.training.yes_no_examples import YesNoSettings, item_texts

LISTS = "yes_no_lists"
#: Name of the lists, and users of one call.
YES_NO, _BLOCK = "yes_no", 10


def run_lists(context: RunContext) -> tuple[Manifest, bool]:
    """Reorder pools of test users into `RUN/yes_no_lists`."""
    settings = context.settings.yes_no
    summaries = ["summaries"] if settings.summaries else []
    return context.run.run_stage(
        LISTS,
        settings.model_dump(include=settings.of_lists()),
        ["data", context.trained, EXAMPLES, MODEL, *summaries],
        lambda output: _lists(context, output),
    )


def _lists(context: RunContext, output: Path) -> StageReport:
    settings, dataset = context.settings.yes_no, context.dataset
    wanted = dataset.matrix(TEST)
    users = np.flatnonzero(np.diff(wanted.indptr))
    users = users[drawn_users(len(users), settings.list_users, settings.seed)]
    model = best_model(context) if settings.retriever == "best" else settings.retriever
    scorer = load_model(context.run.path(context.trained) / model).score_block
    known = dataset.matrix(TRAIN, VALID, opinion=None)
    items, graph = retrieve(scorer, users, known, settings.pool)
    told: list[str | None] = [None] * len(users)
    if settings.summaries:
        told = summaries_in_order(context.run.path("summaries"), dataset.user_ids[users])
    folders = (context.run.path("data"), context.run.path(MODEL) / ADAPTER_FOLDER)
    work = output / ".scores"
    arguments = (settings, *folders, users, items, told)
    found = in_blocks(context, LISTS, YES_NO, _Scorer, arguments, len(users), _BLOCK, work)
    lists = np.full_like(items, NO_ITEM)
    for row, scores in enumerate(found["scores"]):
        there = np.flatnonzero(items[row] != NO_ITEM)
        fused = fuse(scores[there].astype(np.float64), graph[row, there], settings.weight)
        lists[row, : len(there)] = items[row, there][order_of(fused, None)]
    write_test_lists(output, users, {YES_NO: lists})
    shutil.rmtree(work)
    return StageReport(
        counts={"in": len(users), "ok": len(users), "dead_letter": 0},
        figures={"without_summary": float(sum(not text for text in told))},
    )


class _Scorer:
    """The fine-tuned model on a worker, and the pools."""

    def __init__(
        self,
        settings: YesNoSettings,
        data: Path,
        adapter: Path,
        users: np.ndarray,
        items: np.ndarray,
        told: list[str | None],
    ) -> None:
        dataset = Dataset.load(data)
        self._texts = item_texts(settings, dataset)
        histories = dataset.histories(TRAIN, VALID)
        self._recent = [histories[user] for user in users]
        self._settings, self._items, self._told = settings, items, told
        tokenizer = tokenizer_of(settings.model, settings.revision)
        self._writer = YesNoPrompts(settings.prompts(), tokenizer, settings.max_tokens)
        self._model = LoadedModel(settings, adapter)

    def block(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """(block, pool) scores; 0 where there is no item."""
        scores = np.zeros((stop - start, self._items.shape[1]), np.float32)
        for row in range(start, stop):
            there = np.flatnonzero(self._items[row] != NO_ITEM)
            recent = self._recent[row]
            kept = recent[max(0, len(recent) - self._settings.recent_items) :]
            prompt = self._writer.write(
                self._told[row],
                [self._texts[item] for item in kept],
                [self._texts[item] for item in self._items[row, there]],
            )
            question = Question(prompt.prefix, prompt.candidates, -1)
            scores[row - start, there] = self._model.score(question)
        return {"scores": scores}
