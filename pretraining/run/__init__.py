"""A run's folder: checkpoint, metrics, health, stopping and cost."""
