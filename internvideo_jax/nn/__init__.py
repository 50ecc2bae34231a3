"""The vocabulary every tower is written in: norms, attention, transformer stack, pooling, position tables."""
