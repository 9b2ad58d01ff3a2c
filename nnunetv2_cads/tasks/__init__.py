"""The seven tasks assumed to be the paper's: from a challenge's download to an nnU-Net raw dataset."""
