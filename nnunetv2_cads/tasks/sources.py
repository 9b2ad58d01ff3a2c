"""The table of the seven tasks: how their downloads name files, what their labels mean, how many cases there are.

That these are the paper's tasks is an assumption, see docs/tasks.md.
"""

from dataclasses import dataclass

LITS_SCANS, KITS19_SCANS = 131, 210


@dataclass(frozen=True)
class Source:
    """One task's download.

    Attributes:
        title: challenge and target.
        dataset_id, dataset_name: of the nnU-Net dataset; the user may give another number.
        labels: name -> value in the label maps, from 0 on without gaps.
        image, label, test: what the paths of images with labels, of label maps and of images without labels end in,
            before the suffix of NIfTI, as regular expressions; their group tells which case a file is of.
        layout: the same in words, for messages.
        scans: published number of cases with labels.
        names: of these cases, where numbers run from 0; empty where only the download's dataset.json lists them.
        licence: under which the challenge gives the data.
        reference: the publication.
        case_name: what makes a case's name of the group; in the Decathlon and KiTS19 they are the same.
    """

    title: str
    dataset_id: int
    dataset_name: str
    labels: dict[str, int]
    image: str
    label: str
    test: str
    layout: str
    scans: int
    licence: str
    reference: str
    names: tuple[str, ...] = ()
    case_name: str = "{}"


def _decathlon(number: int, name: str, target: str, scans: int, *labels: str) -> Source:
    """A task of the Medical Segmentation Decathlon, which all have one layout.

    Args:
        number: of the task, there and here.
        name: of the task; its files are named after it.
        target: in words.
        scans: published number of cases with labels.
        labels: names of the values from 1 on.
    """
    stem = rf"({name.lower()}_\d+)"
    return Source(
        title=f"Medical Segmentation Decathlon: {target}",
        dataset_id=number,
        dataset_name=name,
        labels={"background": 0, **{label: value for value, label in enumerate(labels, start=1)}},
        image=f"imagesTr/{stem}",
        label=f"labelsTr/{stem}",
        test=f"imagesTs/{stem}",
        layout=f"imagesTr/{name.lower()}_NNN.nii.gz beside labelsTr, as in Task{number:02d}_{name}",
        scans=scans,
        licence="CC BY-SA 4.0",
        reference="Antonelli et al., Nature Communications 13:4128, 2022",
    )


SOURCES = {
    "lits": Source(
        title="LiTS: liver and its tumours",
        dataset_id=29,
        dataset_name="LiTS",
        labels={"background": 0, "liver": 1, "tumour": 2},
        image=r"volume-(\d+)",
        label=r"segmentation-(\d+)",
        test=r"(test-volume-\d+)",
        case_name="volume-{}",
        layout="volume-N.nii and segmentation-N.nii, as in the folders Training Batch 1 and 2",
        scans=LITS_SCANS,
        names=tuple(f"volume-{number}" for number in range(LITS_SCANS)),
        licence="CC BY-NC-ND 4.0",
        reference="Bilic et al., Medical Image Analysis 84:102680, 2023",
    ),
    "kits19": Source(
        title="KiTS19: kidneys and their tumours",
        dataset_id=40,
        dataset_name="KiTS19",
        labels={"background": 0, "kidney": 1, "tumour": 2},
        image=r"(case_00(?:[01]\d|20)\d)/imaging",
        label=r"(case_00(?:[01]\d|20)\d)/segmentation",
        test=r"(case_002[1-9]\d)/imaging",
        layout="case_NNNNN/imaging.nii.gz and segmentation.nii.gz, as in the folder data",
        scans=KITS19_SCANS,
        names=tuple(f"case_{number:05d}" for number in range(KITS19_SCANS)),
        licence="CC BY-NC-SA",
        reference="Heller et al., arXiv:1904.00445, 2019",
    ),
    "hepatic_vessel": _decathlon(8, "HepaticVessel", "hepatic vessels and liver tumours", 303, "vessel", "tumour"),
    "pancreas": _decathlon(7, "Pancreas", "pancreas and its tumours", 281, "pancreas", "tumour"),
    "colon": _decathlon(10, "Colon", "colon cancer", 126, "cancer"),
    "lung": _decathlon(6, "Lung", "lung tumours", 63, "cancer"),
    "spleen": _decathlon(9, "Spleen", "spleen", 41, "spleen"),
}
"""Task as given on the command line -> its download."""
