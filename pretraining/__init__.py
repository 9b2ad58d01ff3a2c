"""CADS self-supervised pre-training: CT folder -> store -> views -> training -> encoder checkpoint."""

__version__ = "0.1.0"
