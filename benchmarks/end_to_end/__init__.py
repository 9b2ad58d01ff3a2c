"""Whole commands beside what a user would run otherwise: ``cd benchmarks && python -m end_to_end --help``."""
