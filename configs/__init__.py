"""Configs of runs: one ml_collections file per kind of run, sizes and data sets as arguments."""
