"""Weight files: getting them, reading them, and giving the tensors our names."""
