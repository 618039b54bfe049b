"""Let a language model behind any OpenAI-compatible endpoint rerank a finished run's lists.

RAYSYS_LLM_KEY=… python examples/rerank_http.py CONFIG https://host/v1 MODEL
"""

import sys

import pyarrow.parquet as pq

import raysys


def main(config: str, url: str, model: str, *overrides: str) -> None:
    """Print the list of the first user: the new place, and the one before."""
    engine = [f"rerank.engine.{key}={value}" for key, value in (("kind", "http"), ("model", model))]
    http = [f"rerank.engine.http.base_url={url}", "rerank.engine.http.api_key_env=RAYSYS_LLM_KEY"]
    run = raysys.run(config, *engine, *http, *overrides, stages=["rerank"])
    rows = pq.read_table(run.folder / "rerank" / "recommendations.parquet").to_pylist()
    for row in rows:
        if row["user_id"] == rows[0]["user_id"]:
            print(f"{row['rank']}. {row['title']} (was {row['graph_rank']})")


if __name__ == "__main__":
    main(*sys.argv[1:])
