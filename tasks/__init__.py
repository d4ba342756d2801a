"""Training, evaluation and prediction on real data."""
