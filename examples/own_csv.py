"""Your own ratings: train, measure, recommend.

python examples/own_csv.py ratings.csv items.csv
"""

import sys
from pathlib import Path

import raysys

CONFIG = Path(__file__).with_suffix(".toml")


def main(ratings: str, items: str, *overrides: str) -> None:
    """Print each model's accuracy, and a list for the first user."""
    run = raysys.run(CONFIG, f"data.interactions={ratings}", f"data.items={items}", *overrides)
    for model, metrics in run.metrics.items():
        print(f"{model:12} NDCG@10 {metrics['ndcg@10']:.3f}")
    user = Path(ratings).read_text(encoding="utf-8").splitlines()[1].split(",")[0]
    for place, item in enumerate(run.recommend(user, k=5), start=1):
        print(f"{place}. {item.title} ({item.item_id})")
    print(f"Report: {run.report}")


if __name__ == "__main__":
    main(*sys.argv[1:])
