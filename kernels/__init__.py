"""Accelerated operations, one folder per op: a reference that defines the semantics and faster implementations."""
