"""Losses as pure functions of model outputs; always float32 scalars."""
