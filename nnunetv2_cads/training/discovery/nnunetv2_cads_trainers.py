"""Shows nnU-Net the trainers. They live elsewhere, since nnU-Net forgets the modules that it imports from here."""

from nnunetv2_cads.training.variants import TRAINERS

globals().update(TRAINERS)
