"""Flags of `cads_pretrain` for the smallest run that does everything; shared by the tests of several rooms.

A test that needs another value gives the flag again behind these: ``[*TINY_RUN, "--epochs=1"]``.
"""

TINY_RUN = [
    "--preset=cads", "--encoder-size=b0", "--batch-size=2", "--head-out-dim=32", "--head-hidden-dim=32",
    "--head-bottleneck-dim=16", "--epochs=3", "--epoch-samples=4", "--log-every=1", "--device=cpu",
]  # fmt: skip
"""Six steps in three epochs, one of them warm-up; a line of metrics for each step; one worker of the loader.

For fine-tuning, and with ``--plain``, ``--encoder-size=b1`` must be given again.
"""

_RESTORATION = [*TINY_RUN, "--epochs=2", "--restoration-weight=1", "--restored-crop-size", "16", "32", "32"]
RESTORATION_WITH_CADS = [*_RESTORATION, "--token-weight=0.5", "--ray-weight=0.25"]
RESTORATION_ALONE = [*_RESTORATION, "--distillation-weight=0"]
_POINTS = ["--point-weight=2", "--point-crop-size", "16", "32", "32", "--point-count=32"]
POINTS_WITH_CADS = [*TINY_RUN, "--epochs=2", *_POINTS]
POINTS_ALONE = [*POINTS_WITH_CADS, "--distillation-weight=0"]
