"""What happens to decoded frames: choosing, resizing, augmenting."""
