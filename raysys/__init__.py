"""raysys: language models and user-item graphs recommend together, on Ray."""

__version__ = "0.1.0"
