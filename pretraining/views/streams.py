"""The streams of random numbers of a run: each is seeded by the run's seed, its stream and a place in the run.

So nothing depends on what was drawn before, and a run that resumes needs no state of a generator.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream decides, and by which place it is seeded."""

    ORDER = 0  # of the sub-volumes, by pass
    VIEWS = 1  # by sample
    DEPTH_OF_VIEWS = 2  # stochastic depth, by step
    DEPTH_OF_CROPS = 3  # the same for crops
    CROPS = 4  # by sample
    DEPTH_OF_PAIRS = 5  # stochastic depth, by step
    PAIRS = 6  # by sample


def generator(seed: int, stream: Stream, place: int) -> np.random.Generator:
    """The random numbers of a stream at a place."""
    return np.random.default_rng((seed, int(stream), place))
