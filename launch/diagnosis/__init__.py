"""What `doctor` tries out."""
