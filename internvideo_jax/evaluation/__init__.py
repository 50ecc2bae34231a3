"""What a trained model is measured and used by: features, metrics, pictures."""
