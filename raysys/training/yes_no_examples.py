"""The yes/no recommender's questions: chosen from a data set, turned into tokens on Ray Data.

LLM-TRSR §4.3 and §5.1.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.data.candidates import Candidates, drawn_users, next_items
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.manifest import StageReport
from raysys.models.sasrec import SASRecSettings
from raysys.models.yes_no import AnswerTokens, Question
from raysys.schema import (
    CANDIDATES,
    CUT,
    ITEM_ID,
    PREFIX,
    QUESTION_SCHEMA,
    RECENT,
    SPLIT,
    SPLITS,
    SUMMARY,
    TARGET,
    TEST,
    TRAIN,
    USER_ID,
    VALID,
)
from raysys.settings import Settings
from raysys.store import read_table, write_table
from raysys.text.engine import model_identity, tokenizer_of
from raysys.text.evidence import shown_items
from raysys.text.profiles import summaries_in_order
from raysys.text.prompts import Prompts, as_line, load_prompts
from raysys.text.yes_no import TokenPrompt, YesNoPrompts
from raysys.training.language_models import FinetuneSettings

QUESTIONS_FILE = "questions.parquet"
#: Questions of one task; starting a task costs a second or two.
_BLOCK = 512
_NUMBER, _MISTAKE = "number", "mistake"
_TOKEN_SCHEMA = QUESTION_SCHEMA.append(pa.field(_NUMBER, pa.int64())).append(
    pa.field(_MISTAKE, pa.string())
)
_ENGLISH = {TRAIN: "training", VALID: "validation", TEST: "test"}


class YesNoSettings(Settings):
    """The yes/no recommender. Defaults: LLM-TRSR."""

    model: str = "smollm2-135m-instruct"
    """The base model: an asset name, a local folder, or a hub id."""
    revision: str | None = None
    """Of a hub model."""
    domain: str = "products"
    """What the things are: movies, books, products, games, news, businesses, or a .toml file."""
    summaries: bool = True
    """Show the summaries of the run; false: recent items alone (TALLRec's form)."""
    recent_items: int = Field(default=3, ge=0, le=50)
    """Latest items shown."""
    item_columns: tuple[str, ...] = ()
    """Item columns shown beside the title; empty: all."""
    item_characters: int = Field(default=500, ge=20)
    """Longer texts of an item are cut."""
    max_tokens: int = Field(default=2048, ge=64)
    """Of a prompt with its answer; recent items, then the summary are cut to fit."""
    users: int | None = Field(default=None, ge=1)
    """Only so many users, drawn by `seed`; none: all."""
    train_positives: int = Field(default=1, ge=1)
    """Latest train interactions of each user that are learnt to predict."""
    train_negatives: int = Field(default=1, ge=1)
    """Sampled items for each of them."""
    negatives: int = Field(default=20, ge=1)
    """Sampled items for each validation and test target."""
    valid_questions: int = Field(default=200, ge=1)
    """Validation targets that decide when to stop."""
    test_questions: int | None = Field(default=1000, ge=1)
    """Test targets that are measured; none: all."""
    ks: tuple[int, ...] = Field(default=(3, 5, 10), min_length=1)
    """Cut-offs."""
    seed: int = Field(default=2023, ge=0)
    """Draws users and negatives."""
    finetune: FinetuneSettings = FinetuneSettings()
    """How the model is fine-tuned."""
    sasrec: SASRecSettings = SASRecSettings()
    """The sequential baseline."""

    retriever: str = "best"
    """For lists out of the whole catalogue: the trained model whose best items are reordered; see
    `recommend.model`."""
    pool: int = Field(default=20, ge=2, le=200)
    """Items of it that are reordered."""
    weight: float = Field(default=0.8, ge=0, le=1)
    """Of the answers in the final order; the retriever's scores have the rest."""
    list_users: int | None = Field(default=200, ge=1)
    """Test users, drawn by `seed`, whose lists are made; none: all."""

    @staticmethod
    def of_lists() -> set[str]:
        """Settings that lists depend on, and nothing before them."""
        return {"retriever", "pool", "weight", "list_users"}

    def prompts(self) -> Prompts:
        """The one prompt."""
        return load_prompts("yes_no", self.domain, words=0)

    def about(self) -> dict[str, Any]:
        """What an adapter is bound to: base model, answer tokens by form, prompts."""
        tokenizer = tokenizer_of(self.model, self.revision)
        answers = AnswerTokens.of(tokenizer)
        return {
            "base": model_identity(self.model, self.revision),
            "yes": {str(token): tokenizer.decode([token]) for token in answers.yes},
            "no": {str(token): tokenizer.decode([token]) for token in answers.no},
            "prompts": self.prompts().mark(),
        }


def questions_of(settings: YesNoSettings, dataset: Dataset, split: str) -> list[Candidates]:
    """The questions of a split, chosen and sampled; see `next_items`."""
    drawn = drawn_users(len(dataset.user_ids), settings.users, settings.seed)
    negatives = settings.train_negatives if split == TRAIN else settings.negatives
    found = list(
        next_items(dataset, split, drawn, negatives, settings.seed, settings.train_positives)
    )
    if split == TRAIN:
        return found
    limit = settings.valid_questions if split == VALID else settings.test_questions
    kept = drawn_users(len(found), limit, settings.seed)
    return [found[place] for place in kept]


def build_examples(
    settings: YesNoSettings, dataset: Dataset, summaries: Path | None, output: Path
) -> StageReport:
    """Write the questions of all splits as tokens, on Ray Data.

    Args:
        summaries: folder of the users' summaries; None: none are shown.

    Raises:
        UserError: drawn users for whom no summary was tried, a candidate too long, no questions.
    """
    import ray.data

    told = _summaries(settings, dataset, summaries)
    rows: list[dict[str, Any]] = []
    skipped = 0
    for split in SPLITS:
        chosen = questions_of(settings, dataset, split)
        if split == TRAIN:
            # Without any history there is nothing to learn from; valid and test show NULL.
            usable = [question for question in chosen if len(question.history)]
            skipped, chosen = len(chosen) - len(usable), usable
        if not chosen:
            raise UserError(f"no user has a {_ENGLISH[split]} question: import more interactions.")
        rows += [_row(settings, dataset, told, split, question) for question in chosen]
    texts = ray.put(item_texts(settings, dataset))
    table = pa.Table.from_pylist([{_NUMBER: place, **row} for place, row in enumerate(rows)])
    blocks = [table.slice(start, _BLOCK) for start in range(0, len(table), _BLOCK)]
    tokens = ray.data.from_arrow(blocks).map_batches(
        partial(_tokenise, settings, texts),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=1,
    )
    found = pa.concat_tables(tokens.iter_batches(batch_size=None, batch_format="pyarrow"))
    if mistakes := sorted(filter(None, found[_MISTAKE].to_pylist())):
        raise UserError(mistakes[0])
    # Blocks come back in any order.
    found = found.sort_by(_NUMBER).drop([_NUMBER, _MISTAKE]).cast(QUESTION_SCHEMA)
    write_table(output / QUESTIONS_FILE, found)
    counts = Counter(found[SPLIT].to_pylist())
    lengths = [len(prefix) for prefix in found[PREFIX].to_pylist()]
    return StageReport(
        counts={"in": len(rows) + skipped, "ok": len(rows), "dead_letter": skipped},
        dropped={"no_history_before_the_target": skipped} if skipped else {},
        figures={
            **{f"{name}_questions": float(counts[name]) for name in SPLITS},
            "without_summary": float(sum(not row[SUMMARY] for row in rows)),
            "cut_questions": float(sum(cut > 0 for cut in found[CUT].to_pylist())),
            "prefix_tokens_mean": float(np.mean(lengths)),
            "prefix_tokens_max": float(max(lengths)),
        },
    )


def item_texts(settings: YesNoSettings, dataset: Dataset) -> list[str]:
    """What is shown of each item, by row."""
    shown = shown_items(
        dataset.items, settings.item_columns, settings.item_characters, "yes_no.item_columns"
    )
    return [as_line(item)[: settings.item_characters] or "title: unknown" for item in shown]


def read_questions(path: Path, split: str) -> tuple[list[Question], pa.Table]:
    """The questions of a split as tokens, and their rows."""
    table = read_table(path / QUESTIONS_FILE, QUESTION_SCHEMA.names)
    table = table.filter(pc.equal(table[SPLIT], split))
    columns = (table[name].to_pylist() for name in (PREFIX, CANDIDATES, TARGET))
    return [Question(*row) for row in zip(*columns, strict=True)], table


def _summaries(
    settings: YesNoSettings, dataset: Dataset, folder: Path | None
) -> dict[int, str | None]:
    """The summary of each drawn user row."""
    if folder is None:
        return {}
    drawn = drawn_users(len(dataset.user_ids), settings.users, settings.seed)
    found = summaries_in_order(folder, dataset.user_ids[drawn])
    if not any(found):
        raise UserError(
            f"{folder} has a summary for none of the drawn users: give [summaries] and [yes_no] "
            "the same users and seed."
        )
    return dict(zip(drawn.tolist(), found, strict=True))


def _row(
    settings: YesNoSettings,
    dataset: Dataset,
    told: dict[int, str | None],
    split: str,
    question: Candidates,
) -> dict[str, Any]:
    kept = question.history[max(0, len(question.history) - settings.recent_items) :]
    return {
        USER_ID: dataset.user_ids[question.user],
        SPLIT: split,
        SUMMARY: told.get(question.user) or "",
        RECENT: kept.tolist(),
        CANDIDATES: question.items.tolist(),
        ITEM_ID: dataset.item_ids[question.items].tolist(),
        TARGET: question.target,
    }


def _tokenise(settings: YesNoSettings, texts: Any, batch: pa.Table) -> pa.Table:
    """Questions as rows → questions as tokens; runs in Ray Data's tasks."""
    import ray

    shown: list[str] = ray.get(texts)
    tokenizer = tokenizer_of(settings.model, settings.revision)
    writer = YesNoPrompts(settings.prompts(), tokenizer, settings.max_tokens)
    rows = []
    for row in batch.to_pylist():
        told = {name: row[name] for name in (_NUMBER, USER_ID, SPLIT, ITEM_ID, TARGET)}
        try:
            prompt = writer.write(
                row[SUMMARY],
                [shown[item] for item in row[RECENT]],
                [shown[item] for item in row[CANDIDATES]],
            )
        except UserError as mistake:
            # Raised here, it would come back from Ray Data as some other error.
            prompt = TokenPrompt([], [], 0, 0)
            told[_MISTAKE] = str(mistake)
        tokens = {PREFIX: prompt.prefix, CANDIDATES: prompt.candidates}
        rows.append({_MISTAKE: "", **told, **tokens, RECENT: prompt.recent, CUT: prompt.cut})
    return pa.Table.from_pylist(rows, schema=_TOKEN_SCHEMA)
