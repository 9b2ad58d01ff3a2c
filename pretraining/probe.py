"""What frozen encoders know, in about a minute each: steers the search for a recipe (docs/evidence.md).

    python pretraining/probe.py DATASET STORE random run/cads_encoder.pth run/checkpoint_latest.pth [--ct DIR]

DATASET: an nnU-Net raw data set with imagesTr, labelsTr, imagesTs, labelsTs. STORE: scans that no encoder was
pre-trained on, for retrieval. Each further argument is an encoder: `random` or `random:SEED`, a `cads_encoder.pth`,
or a run's checkpoint, whose teacher is taken. Prints one JSON object per encoder:

- `linear`, `knn`: balanced accuracy of the organ of a voxel, from features of all maps at that voxel; `linear_*` from
  one map alone. Learnt on the training cases, measured on the test cases.
- `top1`, `top5`: how often a sub-volume finds its scan's radiograph among those of the store.
- `ranks`: effective rank of the pooled features of the stages 1 to 4.
- `real_linear`, `real_knn`: the same on one labelled slab of real CT, learnt on its lower half, with --ct.
- `metrics`: where the encoder lies in a run's folder, first and last line of its loss and health.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pretraining.config import PretrainConfig, ViewConfig
from pretraining.probing.features import load_frozen, pooled_features
from pretraining.probing.probes import LabelledCase, draw_crops, organ_probe, read_case, retrieval, split_by_slices
from pretraining.run.metrics import read_metrics
from pretraining.store.store import Store

TRAIN_CASES, TEST_CASES = 2, 6
CROP_SIZE, CROPS = (32, 64, 64), 6
"""Crops from each case, of the size of a fine-tuning's patch."""
VOXELS = 25
"""Of each class in a crop."""
WINDOWS = 3
"""Sub-volumes of each scan in the retrieval."""
GAP_SLICES = 4
REAL_CLASSES = (0, 1, 2, 3, 5, 6)
"""Background, spleen, kidneys, liver and stomach of the labelled slab."""
HEALTH = ("step", "loss", "teacher_entropy", "mutual_information", "view_agreement", "feature_spread", "feature_rank")


def read_crops(dataset: Path, part: str, count: int) -> list[LabelledCase]:
    """Crops of the first cases of a part (Tr or Ts) of a data set."""
    crops = []
    for i, labels in enumerate(sorted((dataset / f"labels{part}").glob("*.nii.gz"))[:count]):
        image = dataset / f"images{part}" / labels.name.replace(".nii.gz", "_0000.nii.gz")
        crops += draw_crops(read_case(image, labels), CROP_SIZE, CROPS, seed=i)
    return crops


def real_cases(ct_dir: Path) -> tuple[LabelledCase, LabelledCase]:
    """The halves of the labelled slab of real CT."""
    case = read_case(
        ct_dir / "labelled" / "abdomen_slab_3mm.nii.gz", ct_dir / "labelled" / "abdomen_slab_3mm_seg.nii.gz"
    )
    for label in set(case.labels.ravel().tolist()) - set(REAL_CLASSES):
        case.labels[case.labels == label] = -1
    return split_by_slices(case, GAP_SLICES)


def probe(source: str, dataset: Path, store: Path | None, ct_dir: Path | None, view: ViewConfig) -> dict[str, Any]:
    """All probes of one encoder."""
    started = time.perf_counter()
    encoder = load_frozen(source)
    result: dict[str, Any] = {"encoder": source}
    train, test = read_crops(dataset, "Tr", TRAIN_CASES), read_crops(dataset, "Ts", TEST_CASES)
    result |= organ_probe(encoder, train, test, VOXELS)
    if store:
        features = pooled_features(encoder, Store.open(store), view, WINDOWS)
        result |= retrieval(features) | {"ranks": features.ranks}
    if ct_dir:
        lower, upper = (draw_crops(half, CROP_SIZE, CROPS, seed=0) for half in real_cases(ct_dir))
        real = organ_probe(encoder, lower, upper, 2 * VOXELS)
        result |= {"real_linear": real["linear"], "real_knn": real["knn"]}
    lines = read_metrics(Path(source).parent / "metrics.jsonl")
    if lines:
        result["metrics"] = [
            {key: line[key] for key in HEALTH if key in line}  # a peer's run has the loss alone
            for line in (lines[0], lines[-1])
        ]
    return result | {"seconds": time.perf_counter() - started}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("encoders", nargs="+")
    parser.add_argument("--ct", type=Path, help="folder of real CT with a folder `labelled`")
    parser.add_argument("--crop-size", type=int, nargs=3, default=(16, 64, 64), help="of the sub-volumes")
    arguments = parser.parse_args(argv)
    view = PretrainConfig().replace(crop_size=tuple(arguments.crop_size)).view
    for source in arguments.encoders:
        result = probe(source, arguments.dataset, arguments.store, arguments.ct, view)
        sys.stdout.write(json.dumps(result, default=float) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
