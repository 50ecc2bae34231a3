"""Measurements of saved models: `internvideo-jax evaluate --config=configs/eval/...`."""
