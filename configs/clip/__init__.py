"""Recipes of the CLIP family: InternVideo2-CLIP and ViCLIP."""
