"""Somebody the model has never seen: recommend from what they like, and find similar items.

python examples/new_user.py runs/own_csv ITEM_ID ITEM_ID …
"""

import sys

import raysys


def main(folder: str, *liked: str) -> None:
    """Print a list for a history, and what is nearest to its last item."""
    run = raysys.open_run(folder)
    for item in run.recommend(history=liked, k=5):
        print(f"{item.title} ({item.item_id}), by {item.source}")
    print(f"like {liked[-1]}:", ", ".join(item.item_id for item in run.similar(liked[-1], k=3)))


if __name__ == "__main__":
    main(*sys.argv[1:])
