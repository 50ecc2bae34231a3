"""Reading PyTorch files without PyTorch: names, shapes and bytes, nothing executed."""
