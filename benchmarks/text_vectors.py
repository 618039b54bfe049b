"""Vectors of item texts by a sentence encoder, as a parquet file: item_id, vector.

The text of an item is all that its text columns say, `column: value`. The file is what
`benchmarks.reproduce --vectors` and the setting `embeddings.item_vectors` read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.reproduce import find_dataset
from raysys.assets import model_path
from raysys.errors import UserError
from raysys.schema import ITEM_ID, ITEMS_FILE
from raysys.store import read_table, write_table
from raysys.text.vectors import VECTOR


def texts_of(items: pa.Table, columns: list[str]) -> list[str]:
    """One text an item; empty values are left out."""
    parts = [
        [f"{name}: {value}" if value else "" for value in items[name].to_pylist()]
        for name in columns
    ]
    return ["; ".join(filter(None, row)) for row in zip(*parts, strict=True)]


def main() -> None:
    """Encode and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--columns", required=True, help="comma-separated columns of items.parquet")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        items = read_table(find_dataset(arguments.dataset) / ITEMS_FILE)
        columns = arguments.columns.split(",")
        for name in columns:
            if name not in items.column_names:
                raise UserError(f"no column '{name}': there are {', '.join(items.column_names)}")
        model = model_path(arguments.model)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    from sentence_transformers import SentenceTransformer

    texts = texts_of(items, columns)
    start = time.perf_counter()
    vectors = SentenceTransformer(model, device=None).encode(
        texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False
    )
    seconds = time.perf_counter() - start
    # An item without any text has no vector, rather than the vector of nothing.
    known = np.array([bool(text) for text in texts])
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors[known].astype(np.float32).reshape(-1)), vectors.shape[1]
    )
    write_table(
        arguments.out, pa.table({ITEM_ID: items[ITEM_ID].filter(pa.array(known)), VECTOR: column})
    )
    figures = {"items": int(known.sum()), "without_text": int((~known).sum()), "seconds": seconds}
    print(json.dumps({"benchmark": "text_vectors", "width": vectors.shape[1], **figures}))


if __name__ == "__main__":
    main()
