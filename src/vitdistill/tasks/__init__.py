"""What labels mean: head, loss, metrics, and how predictions are scored."""
