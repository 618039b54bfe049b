"""Column names, Arrow schemas and id types: the only place where column strings live.

Ids are strings everywhere (`"7"`, `"B0001"`): `007` in a CSV stays `007`, and
two files that spell the same id alike always join. Inside matrices a user or
item is its row number in `users.parquet` or `items.parquet`.
"""

from __future__ import annotations

import pyarrow as pa

USER_ID = "user_id"
ITEM_ID = "item_id"
RATING = "rating"
TIMESTAMP = "timestamp"
POSITION = "position"
#: What a rating says: 1 liked, 0 neither, -1 disliked. Without it every interaction is a like.
OPINION = "opinion"
LIKED, NEITHER, DISLIKED = 1, 0, -1
SPLIT = "split"
TITLE = "title"

TRAIN, VALID, TEST = "train", "valid", "test"
SPLITS = (TRAIN, VALID, TEST)

ENTITY_ID = "entity_id"
SUMMARY = "summarization"
REASONING = "reasoning"
#: The reply's fields as JSON; who wrote it: `llm`, `repaired` or `template`; how many items did
#: not fit into the prompt; calls of the LLM.
FIELDS, SOURCE, CUT_ITEMS, CALLS = "fields", "source", "cut_items", "calls"
#: How many interactions a summary has read, and a hash of their items in order.
ITEMS_READ, HISTORY = "items_read", "history"
REVIEW = "review"
PROMPT_TOKENS = "prompt_tokens"
GENERATED_TOKENS = "generated_tokens"
REASON = "reason"
DETAIL = "detail"
RANK = "rank"
SCORE = "score"

#: Files of a data set folder (the output of `raysys data import`).
INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.parquet"
USERS_FILE = "users.parquet"
#: Files of a profile stage.
PROFILES_FILE = "profiles.parquet"
DEAD_LETTER_FILE = "dead_letter.parquet"
RECOMMENDATIONS_FILE = "recommendations.parquet"

#: One profile per row: `summarization` is its text, null where the model answered "None".
PROFILE_SCHEMA = pa.schema(
    [
        pa.field(ENTITY_ID, pa.string(), nullable=False),
        pa.field(SUMMARY, pa.string()),
        pa.field(REASONING, pa.string()),
        pa.field(FIELDS, pa.string()),
        pa.field(SOURCE, pa.string(), nullable=False),
        pa.field(CUT_ITEMS, pa.int64()),
        pa.field(CALLS, pa.int64()),
        pa.field(PROMPT_TOKENS, pa.int64()),
        pa.field(GENERATED_TOKENS, pa.int64()),
    ]
)
#: One summary of a user's history per row.
SUMMARY_SCHEMA = PROFILE_SCHEMA.append(pa.field(ITEMS_READ, pa.int64())).append(
    pa.field(HISTORY, pa.string())
)

#: Questions of the yes/no recommender as tokens: the prefix is shared by all candidates, of which
#: the one at place `target` is the next item.
CANDIDATES, TARGET, PREFIX, RECENT, CUT = "candidates", "target", "prefix", "recent", "cut"
QUESTION_SCHEMA = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(SPLIT, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.list_(pa.string()), nullable=False),
        pa.field(TARGET, pa.int64(), nullable=False),
        pa.field(PREFIX, pa.list_(pa.int32()), nullable=False),
        pa.field(CANDIDATES, pa.list_(pa.list_(pa.int32())), nullable=False),
        pa.field(RECENT, pa.int64(), nullable=False),
        pa.field(CUT, pa.int64(), nullable=False),
    ]
)

#: The next item of a user among sampled ones.
CANDIDATE_SCHEMA = pa.schema(
    [QUESTION_SCHEMA.field(name) for name in (USER_ID, SPLIT, ITEM_ID, TARGET)]
)

#: Crowd contextual prompts as tokens, users and items among them, with the kind of each.
FAMILY, TOKENS = "family", "tokens"
PROMPT_SCHEMA = pa.schema(
    [
        pa.field(FAMILY, pa.string(), nullable=False),
        pa.field(TOKENS, pa.list_(pa.int64()), nullable=False),
    ]
)

#: Rows that failed, kept with the reason: n_in = n_ok + n_dead_letter.
DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field(ENTITY_ID, pa.string(), nullable=False),
        pa.field(REASON, pa.string(), nullable=False),
        pa.field(DETAIL, pa.string()),
    ]
)

#: Top-k lists, best first; `rank` counts from 1.
RECOMMENDATION_SCHEMA = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(RANK, pa.int32(), nullable=False),
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field(SCORE, pa.float32(), nullable=False),
        pa.field(TITLE, pa.string()),
    ]
)
#: The same with the place that the graph gave, the language model's score, and whether the
#: model could not be used, so that the graph's order stands.
RERANKED_SCHEMA = pa.schema(
    [
        *RECOMMENDATION_SCHEMA,
        pa.field("graph_rank", pa.int32(), nullable=False),
        pa.field("llm_score", pa.float32()),
        pa.field("degraded", pa.bool_(), nullable=False),
    ]
)

#: Why an item was recommended: claims as JSON, each with the lines that it rests on.
EXPLANATIONS_FILE = "explanations.parquet"
CLAIMS, DROPPED_CLAIMS = "claims", "dropped_claims"
EXPLANATION_SCHEMA = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(RANK, pa.int32(), nullable=False),
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field(TITLE, pa.string()),
        pa.field(CLAIMS, pa.string(), nullable=False),
        pa.field(SOURCE, pa.string(), nullable=False),
        pa.field(DROPPED_CLAIMS, pa.int64(), nullable=False),
    ]
)
