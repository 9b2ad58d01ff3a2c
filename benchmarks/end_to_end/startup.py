"""From `cads_pretrain` to the end of its first step."""

import shutil
import statistics
from pathlib import Path

from end_to_end.measured import measure

STEPS, BATCH = 3, 8
FIRST_STEP, SECOND_STEP = r"\b1/3 \[", r"\b2/3 \["


def time_first_step(work: Path, store: Path, rounds: int) -> dict[str, float]:
    """Start a run with the preset `cads` several times; prints medians.

    Args:
        work: folder for the runs.
        store: that `cads_preprocess` wrote.
        rounds: how often.

    Returns:
        Seconds to the end of the first step, and of the second step alone.
    """
    firsts, seconds = [], []
    for _ in range(rounds):
        shutil.rmtree(work / "run", ignore_errors=True)
        flags = ["--preset=cads", f"--batch-size={BATCH}", "--epochs=1", f"--epoch-samples={STEPS * BATCH}"]
        flags += ["--log-every=1", "--device=cpu"]  # the bar shows each step when its line is logged
        run = measure(["cads_pretrain", str(store), str(work / "run"), *flags], {})
        firsts.append(run.seconds_to(FIRST_STEP))
        seconds.append(run.seconds_to(SECOND_STEP) - firsts[-1])
    first, second = statistics.median(firsts), statistics.median(seconds)
    print(f"\ncads_pretrain --preset cads, batch {BATCH}, {rounds} rounds: ", end="")
    print(f"first step done after {first:.1f} s, the second takes {second:.1f} s")
    return {"first_step_s": round(first, 2), "second_step_s": round(second, 2)}
