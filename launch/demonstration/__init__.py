"""The training part of `internvideo-jax demo`: a world, two teachers, stage 1, and its proof."""
