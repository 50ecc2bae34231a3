"""Files of video, images and sound to arrays."""
