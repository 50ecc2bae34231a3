"""Released PyTorch checkpoints to saved models and back, without installing PyTorch."""
