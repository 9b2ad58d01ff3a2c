"""Trading time for memory: computing a part of the forward pass again in the backward pass."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def keep_input_only(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), keeping only the inputs for the backward pass, which computes the rest again."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
