"""What happens to a network after training."""
