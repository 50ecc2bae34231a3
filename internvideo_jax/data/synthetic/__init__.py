"""A world of small clips that are drawn: the demo learns from it."""
