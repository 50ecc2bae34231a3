"""Command-line programs: `internvideo-jax NAME` runs `internvideo_jax.launch.NAME`."""
