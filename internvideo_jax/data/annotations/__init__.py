"""Lists of clips: which there are, and what is known of each."""
