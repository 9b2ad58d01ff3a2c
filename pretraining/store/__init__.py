"""The store: volumes at 1 mm with their radiographs, and how they get there."""

from pretraining.store.store import Store

__all__ = ["Store"]
