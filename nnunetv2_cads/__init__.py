"""CADS for CT segmentation as a plugin of nnU-Net v2: PVT-UNet, its trainer and the demo."""

__version__ = "0.1.0"
