"""CADS self-supervised pre-training: CT folder -> store -> views -> training -> encoder file."""

from nnunetv2_cads import __version__

__all__ = ["__version__"]
