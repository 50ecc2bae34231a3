"""What `internvideo-jax benchmark` measures, and how."""
