"""The one folder that `nnUNet_extTrainer` names; nnU-Net imports every module in it."""
