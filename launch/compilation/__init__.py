"""What `internvideo-jax compile_report` compiles."""
