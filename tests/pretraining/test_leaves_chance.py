"""Pre-training learns: through the real command, on synthetic bodies, it leaves the chance level of the loss.

Small outputs (K = 64), views that are nearly alike, and a teacher that follows fast make 24 steps enough. Measured: the
loss falls from 5.0 to 3.8 (ln K is 4.16), the two views of a sub-volume agree in 31% of the cases (at first in 13%),
and the mutual information stays at 1.5 nats. Without the loss's gradient the loss stays above ln K.
"""

import math

from pretraining.run.metrics import read_metrics
from pretraining.train import main as pretrain

K = 64
FLAGS = [
    "--preset=cads", f"--head-out-dim={K}", "--head-hidden-dim=64", "--head-bottleneck-dim=32", "--batch-size=4",
    "--epochs=3", "--epoch-samples=32", "--lr=0.064", "--teacher-momentum", "0.9", "1.0", "--log-every=8",
    "--no-uniform-sampling", "--crop-size", "16", "32", "32", "--window-slices=18",
    "--common-crop-scale", "1.0", "1.1", "--view-scale", "0.95", "1.05", "--device=cpu", "--num-workers=0",
]  # fmt: skip


def test_pretraining_leaves_the_chance_level(small_store, tmp_path):
    assert pretrain([str(small_store), str(tmp_path / "run"), *FLAGS]) == 0
    first, _, last = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert first["loss"] > math.log(K)
    assert all(last[f"loss_stage{stage}"] < 0.99 * math.log(K) for stage in range(1, 5)), last
    assert last["loss"] < 0.95 * math.log(K), last
    assert last["view_agreement"] > max(first["view_agreement"], 10 / K), (first, last)
    assert last["mutual_information"] > 1.0, last  # a teacher that answers everything alike has none
