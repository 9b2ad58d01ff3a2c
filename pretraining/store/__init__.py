"""The store: volumes of cubic voxels with their radiographs, and how they get there."""

from pretraining.store.store import Store

__all__ = ["Store"]
