"""`cads_probe`: what frozen encoders know of the labels of a dataset, in a minute or two on a CPU."""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_cads.encoder_file.record import SPACING_MM
from pretraining.config import PretrainConfig
from pretraining.probing.cases import LabelledCase, RawDataset, draw_crops, find_raw_dataset
from pretraining.probing.features import MAPS, FrozenEncoder, load_frozen, pooled_features
from pretraining.probing.probes import NEIGHBOURS, common_labels, organ_probe, retrieval
from pretraining.store.store import Store
from pretraining.system.command import positive_int, run_command
from pretraining.system.errors import UserError
from pretraining.system.files import write_json

logger = logging.getLogger(__name__)

RANDOM = "random"
MAX_CASES = 8
"""To learn from, and as many to measure on."""
SEED = 0
DESCRIPTION = f"""What frozen encoders know of the labels of a dataset, beside random weights.

From an encoder's features at a voxel, a logistic regression and the {NEIGHBOURS} nearest neighbours predict its label.
They learn from half of the cases and are measured on the others (of each at most {MAX_CASES}), in crops at the spacing
that the encoders saw. The table has the balanced accuracy: from all maps of the encoder together, and from each alone.
With a store of scans that no encoder has seen, it also has how often a sub-volume finds its own radiograph by the
encoder's features.

Random encoders differ by about 0.03 between seeds (compare random:1 and random:2). A higher accuracy does not promise a
higher Dice after fine-tuning (docs/evidence.md)."""


def common_spacing(encoders: dict[str, FrozenEncoder], store: Store | None) -> float:
    """The spacing in mm that all encoders saw, and the store has; 1 mm for random weights alone.

    Raises:
        UserError: there are several.
    """
    spacings = {source: encoder.saw.spacing_mm[0] for source, encoder in encoders.items() if encoder.saw}
    if store:
        spacings[str(store.path)] = store.spacing_mm
    if len(set(spacings.values())) > 1:
        found = ", ".join(f"{source} {spacing:g} mm" for source, spacing in spacings.items())
        raise UserError(f"different spacings cannot be compared ({found}); give those of one spacing together")
    return next(iter(spacings.values()), SPACING_MM)


def read_crops(dataset: RawDataset, spacing_mm: float) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Crops of the cases to learn from, and of those to measure on, in cubic voxels.

    Raises:
        UserError: a case cannot be read, or the two parts share fewer than two labels.
    """
    rng = np.random.default_rng(SEED)
    cases = rng.permutation(dataset.cases).tolist()
    count = min(len(cases) // 2, MAX_CASES)
    parts = cases[:count], cases[count : count + MAX_CASES]
    logger.info("reading %d cases to learn from, %d to measure on", *map(len, parts))

    def crops(part: list[str]) -> list[LabelledCase]:
        return [crop for case in part for crop in draw_crops(dataset.read(case, spacing_mm), rng)]

    train, test = map(crops, parts)
    if len(common_labels(train, test)) < 2:
        raise UserError(f"{dataset.folder / 'labelsTr'}: fewer than two labels occur in both halves of the cases")
    return train, test


def probe(
    encoder: FrozenEncoder, train: list[LabelledCase], test: list[LabelledCase], store: Store | None
) -> dict[str, Any]:
    """All probes of one encoder; keys as `organ_probe` and `retrieval` name them."""
    started = time.perf_counter()
    result: dict[str, Any] = organ_probe(encoder, train, test)
    if store:
        features = pooled_features(encoder, store, PretrainConfig().view)
        result |= retrieval(features) | {"ranks": features.ranks}
    return result | {"seconds": time.perf_counter() - started}


def table(results: list[dict[str, Any]]) -> str:
    """The results for the terminal: blocks of one line for each encoder, and what guessing gives."""
    blocks = {
        "logistic regression": {"all maps": "linear", **{name: f"linear_{name}" for name in MAPS}},
        f"{NEIGHBOURS} nearest neighbours": {"all maps": "knn", **{name: f"knn_{name}" for name in MAPS}},
    }
    if "top1" in results[0]:
        blocks["own radiograph"] = {"first": "top1", "in five": "top5"}
    chance = {"encoder": "chance", "linear": results[0]["chance"], "knn": results[0]["chance"]}
    chance |= {key: results[0][f"chance_{key}"] for key in ("top1", "top5") if key in results[0]}
    rows = [*results, chance]
    width = 2 + max(map(len, [*blocks, *(row["encoder"] for row in rows)]))
    lines = []
    for title, columns in blocks.items():
        lines.append(f"{title:{width}}" + "".join(f"{column:>10}" for column in columns))
        for row in rows:
            cells = (f"{row[key]:10.3f}" for key in columns.values() if key in row)
            lines.append(f"{row['encoder']:{width}}" + "".join(cells))
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """`cads_probe ENCODER... -d ID`: what frozen encoders know of a dataset's labels."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="cads_probe",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "encoders",
        metavar="ENCODER",
        nargs="+",
        help="encoder file, checkpoint of a run, or random[:SEED]; random weights are always added",
    )
    datasets = parser.add_mutually_exclusive_group(required=True)
    datasets.add_argument("-d", metavar="ID", type=positive_int, help="dataset with labels in nnUNet_raw")
    datasets.add_argument("--dataset", metavar="RAW", type=Path, help="its folder, wherever it is")
    parser.add_argument("--store", type=Path, help="of cads_preprocess, with scans that no encoder has seen")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results to this file")
    parser.add_argument("--png", metavar="FILE", type=Path, help="draw them into this one")
    arguments = parser.parse_args(argv)
    for file in filter(None, (arguments.json, arguments.png)):
        if not os.access(file.absolute().parent, os.W_OK):
            raise UserError(f"{file}: its folder cannot be written; choose another FILE")
    store = Store.open(arguments.store) if arguments.store else None
    if store and len(store) < 2:
        raise UserError(f"{arguments.store}: holds one volume, so its radiograph is always found; give a larger store")
    sources = list(dict.fromkeys([RANDOM, *arguments.encoders]))
    dataset = RawDataset.open(arguments.dataset or find_raw_dataset(arguments.d))
    encoders = {source: load_frozen(source, for_radiographs=store is not None) for source in sources}
    train, test = read_crops(dataset, common_spacing(encoders, store))
    results = []
    for source, frozen in encoders.items():
        logger.info("probing %s", source)
        results.append({"encoder": source} | probe(frozen, train, test, store))
    if arguments.json:
        write_json(arguments.json, results)
    if arguments.png:
        from pretraining.probing.picture import draw_probes  # matplotlib takes half a second to load

        draw_probes(arguments.png, results)
    sys.stdout.write(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
