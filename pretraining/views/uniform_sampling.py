"""Uniform sampling: keep one patch of every 2 x 2 in-plane group (CADS method, section 2.4)."""

import numpy as np


def draw_positions(groups: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw which patch of each group to keep: 0 to 3, row-major within the group, each equally often over the view.

    Args:
        groups: the number of 2 x 2 groups along (D, H, W); their product is a multiple of 4.

    Returns:
        Array of shape ``groups``.
    """
    return rng.permutation(np.arange(np.prod(groups)) % 4).reshape(groups)


def kept_patches(positions: np.ndarray) -> np.ndarray:
    """Row-major indices, in the full patch grid, of the kept patches, in row-major order of that grid.

    Args:
        positions: (d, h, w) choices of `draw_positions` for a grid of (d, 2h, 2w) patches.
    """
    height, width = positions.shape[1:]
    z, y, x = np.indices(positions.shape)
    rows, columns = 2 * y + positions // 2, 2 * x + positions % 2
    return np.sort(((z * 2 * height + rows) * 2 * width + columns).ravel())


def draw_patches(size: tuple[int, int, int], patch_size: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw which quarter of the patches of a view of ``size`` voxels to keep, for `gather_patches`."""
    depth, height, width = (edge // patch for edge, patch in zip(size, patch_size, strict=True))
    return kept_patches(draw_positions((depth, height // 2, width // 2), rng))


def gather_patches(view: np.ndarray, patch_size: tuple[int, int, int], kept: np.ndarray) -> np.ndarray:
    """Lay the patches with the row-major indices ``kept`` out in that order: (D, H, W) -> (D, H / 2, W / 2)."""
    (d, h, w), (pd, ph, pw) = view.shape, patch_size
    grid = (d // pd, h // ph, w // pw)
    z, y, x = np.unravel_index(kept, grid)
    # whatever the strides of the view, splitting its axes copies nothing, and only the kept patches are touched
    patches = view.reshape(grid[0], pd, grid[1], ph, grid[2], pw)[z, :, y, :, x, :]
    patches = patches.reshape(grid[0], grid[1] // 2, grid[2] // 2, pd, ph, pw)
    return patches.transpose(0, 3, 1, 4, 2, 5).reshape(d, h // 2, w // 2)
