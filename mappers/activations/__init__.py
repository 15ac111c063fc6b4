"""Reading activations out of models."""
