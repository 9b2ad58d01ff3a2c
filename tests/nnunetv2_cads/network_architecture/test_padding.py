import torch

from nnunetv2_cads.network_architecture.padding import repeat_last_voxels


def test_padding_repeats_the_last_voxel_at_the_end_only():
    x = torch.randn(1, 2, 3, 30, 20)
    padded = repeat_last_voxels(x, (15, 30, 29))
    assert padded.shape[2:] == (15, 30, 29)
    torch.testing.assert_close(padded[:, :, :3, :, :20], x)
    torch.testing.assert_close(padded[:, :, 3:, :, :20], x[:, :, 2:].expand(-1, -1, 12, -1, -1))


def test_a_large_enough_input_is_not_copied():
    x = torch.randn(1, 2, 7, 9)
    assert repeat_last_voxels(x, (7, 9)) is x
