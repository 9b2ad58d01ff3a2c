"""Experiment planners; none of our own yet, stock plans serve."""
