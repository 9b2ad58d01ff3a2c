"""`cads_doctor`: checks of the installation, nnU-Net's folders, the encoder file, plans and memory."""
