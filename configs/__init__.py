"""Run configurations: one ml_collections file per kind of run, with sizes and data sets as arguments."""
