"""The recommenders: mathematics only, no Ray."""
