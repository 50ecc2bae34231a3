"""Attention and the 1B encoder on a GPU beside PyTorch."""
