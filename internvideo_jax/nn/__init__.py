"""The vocabulary of all towers: norms, attention, transformer stack, pooling, position tables."""
