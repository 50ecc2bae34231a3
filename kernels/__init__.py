"""Accelerated operations, one folder per op: a reference that defines it, and faster ones."""
