"""A small run that trains in a second, for sweeps and jobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LAYERS, RATE = "models.m.settings.layers", "train.learning_rate"


def write_run(folder: Path, epochs: int = 4) -> Path:
    """Two groups of users, who like the items of their group."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(60):
        for item in draw.choice(20, 8, replace=False) + 20 * (user % 2):
            rows.append(f"u{user},i{item},{len(rows)}")
    (folder / "inter.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    items = [f"i{item},T{item}" for item in range(40)]
    (folder / "items.csv").write_text("item_id,title\n" + "\n".join(items))
    path = folder / "run.toml"
    path.write_text(f"""
out = "{folder}/run"
[data]
interactions = "{folder}/inter.csv"
items = "{folder}/items.csv"
split = {{ method = "ratio", train = 0.6, valid = 0.2, test = 0.2 }}
[models.m]
backbone = "lightgcn"
settings = {{ width = 8 }}
[train]
epochs = {epochs}
batch_size = 64
validate_every = 1
checkpoint_every = 10
patience = {epochs}
""")
    return path
