"""One module per family of checkpoints: all that is known of its files."""
