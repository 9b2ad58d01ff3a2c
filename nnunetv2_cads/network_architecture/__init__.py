"""The networks, with torch only: the dimension-free encoder and the segmentation network on top of it."""

from nnunetv2_cads.network_architecture.pvt_unet import PVTUNet
from nnunetv2_cads.network_architecture.pvt_v2 import PVTv2Encoder

__all__ = ["PVTUNet", "PVTv2Encoder"]
