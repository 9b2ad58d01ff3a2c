"""Cut one labelled CT into slabs and write them as nnU-Net dataset 1: the data of docs/walkthrough.md.

python docs/make_walkthrough_dataset.py CT_FOLDER NNUNET_RAW

Five slabs are for training, one is held out. Slabs of one scan are neighbours, so the Dice shows that the commands work
together, not how well the network generalises.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SLABS, HELD_OUT = 6, 3


def main() -> None:
    """Write imagesTr, labelsTr, imagesTs, labelsTs and dataset.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct_folder", type=Path, help="folder with abdomen_3mm.nii.gz and labelled/")
    parser.add_argument("nnunet_raw", type=Path)
    arguments = parser.parse_args()
    image = sitk.ReadImage(arguments.ct_folder / "abdomen_3mm.nii.gz")
    classes = sitk.ReadImage(arguments.ct_folder / "labelled" / "abdomen_3mm_vertebrae.nii.gz")
    vertebrae = sitk.GetImageFromArray((sitk.GetArrayFromImage(classes) > 0).astype(np.uint8))
    vertebrae.CopyInformation(image)
    dataset = arguments.nnunet_raw / "Dataset001_Vertebrae"
    edges = np.linspace(0, image.GetSize()[2], SLABS + 1).round().astype(int).tolist()
    for i in range(SLABS):
        part = "Ts" if i == HELD_OUT else "Tr"
        for volume, folder, suffix in ((image, "images", "_0000"), (vertebrae, "labels", "")):
            target = dataset / f"{folder}{part}"
            target.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(volume[:, :, edges[i] : edges[i + 1]], target / f"slab_{i}{suffix}.nii.gz")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "vertebrae": 1},
        "numTraining": SLABS - 1,
        "file_ending": ".nii.gz",
    }
    (dataset / "dataset.json").write_text(json.dumps(description, indent=2))


if __name__ == "__main__":
    main()
