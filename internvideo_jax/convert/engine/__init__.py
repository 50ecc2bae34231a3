"""From the tensors of a checkpoint to a saved model and back: plans, transforms, proofs."""
