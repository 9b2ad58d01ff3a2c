"""The networks, with torch only: PVT-UNet on the dimension-free encoder, and CoTr, a peer to compare with."""

from nnunetv2_cads.network_architecture.cotr import CoTr
from nnunetv2_cads.network_architecture.pvt_unet import PVTUNet
from nnunetv2_cads.network_architecture.pvt_v2 import PVTv2Encoder

__all__ = ["CoTr", "PVTUNet", "PVTv2Encoder"]
