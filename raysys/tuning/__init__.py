"""Sweeps over the settings of a run, on Ray Tune."""
