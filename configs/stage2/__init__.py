"""Recipes of stage 2: pre-training of video, sound and text together."""
