"""Does the text help? A model without it, with it, and with everybody's text mixed up.

python examples/alignment.py configs/quickstart.toml
"""

import sys

import raysys


def main(config: str, *overrides: str) -> None:
    """Print Recall@20 of every model: text is worth what it gains over both others."""
    run = raysys.run(config, *overrides)
    for name, metrics in run.metrics.items():
        print(f"{name:24} Recall@20 {metrics['recall@20']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
