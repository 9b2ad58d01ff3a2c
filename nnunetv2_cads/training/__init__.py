"""Fine-tuning through nnU-Net's own commands: the trainer, its learning rates and the pre-trained start."""
