"""The kernels of causal self-attention, whose key-value heads may have several query heads."""
