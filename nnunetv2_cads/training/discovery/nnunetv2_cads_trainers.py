"""Shows nnU-Net the trainers. They live elsewhere, since nnU-Net forgets the modules that it imports from here."""

from nnunetv2_cads.nnunet_version import require_nnunet

require_nnunet()  # before an older nnU-Net fails, in training or prediction, for lack of what we need

from nnunetv2_cads.training.variants import TRAINERS  # noqa: E402

globals().update(TRAINERS)
