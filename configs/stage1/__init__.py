"""Recipes of stage 1 and its neighbours: pre-training, distillation, fine-tuning, probing."""
