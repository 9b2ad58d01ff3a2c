"""Plans for PVT-UNet: nnU-Net's planner with this network's patches, memory and intensities."""
