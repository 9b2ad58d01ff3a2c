"""`cads_tasks convert` on downloads made here, in each challenge's layout with its oddities.

nnU-Net's own check of datasets reads the outcome, and the voxels are compared with those of the download.
"""

import json
import multiprocessing.pool
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning import verify_dataset_integrity as nnunet_check
from nnunetv2.utilities import utils as nnunet_files

from nnunetv2_cads.tasks.cli import main

GZIP = b"\x1f\x8b"
SHAPE = (20, 18, 9)
"""Voxels along x, y, z."""
LPS = np.diag([-0.8, -0.8, 2.5, 1])
RAS = np.diag([0.7, 0.7, 5, 1])
SLICES_FIRST = np.array([[0, 0, -0.9, 40], [0, -0.9, 0, 30], [-2.5, 0, 0, 7], [0, 0, 0, 1]])
"""As KiTS19 has them: indices run footward, to the back and to the left."""
WITHOUT_GEOMETRY = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
"""As the label map of volume-53 of LiTS has it."""


def image(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 1500, shape).astype(np.int16)


def labels(seed: int, highest: int = 2, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest + 1, shape).astype(np.uint8)


@pytest.fixture
def check_dataset(monkeypatch, capsys):
    """nnU-Net's check of a dataset, in threads: its processes would take seconds to import torch."""
    threads = SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    monkeypatch.setattr(nnunet_check, "multiprocessing", SimpleNamespace(get_context=lambda _method: threads))
    monkeypatch.setattr(nnunet_files, "Pool", lambda processes: multiprocessing.pool.ThreadPool(1))

    def check(dataset: Path) -> dict:
        capsys.readouterr()
        nnunet_check.verify_dataset_integrity(str(dataset), 1)
        said = capsys.readouterr().out
        assert "Warning" not in said and "Error" not in said, said
        return json.loads((dataset / "dataset.json").read_text())

    return check


def run(*arguments: object) -> int:
    return main(["convert", *map(str, arguments), "-np", "1"])


def read(path: Path) -> np.ndarray:
    """Voxels (z, y, x), as nnU-Net reads them."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def notes(dataset: Path) -> dict[str, list[str]]:
    """The notes of each case."""
    report = json.loads((dataset / "conversion.json").read_text())
    return {name: case["notes"] for name, case in report["cases"].items()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def reasons(output: str) -> dict[str, str]:
    """The reason for each case that the command has left out, from what it printed."""
    lines = (line.strip().partition(": ") for line in output.splitlines() if line.startswith("  "))
    return {name: reason for name, _, reason in lines}


def write_lits(folder: Path, save) -> Path:
    """Both batches, in the folders that the archives unpack to; returns the second."""
    first, second = (folder / f"Training_Batch{n}/media/nas/01_Datasets/CT/LITS/Training Batch {n}" for n in (1, 2))
    for number, affine in ((0, RAS), (10, LPS)):
        save(first / f"volume-{number}.nii", image(number), affine)
        save(first / f"segmentation-{number}.nii", labels(number), affine)
    for number, affine, label_affine in (
        (28, np.eye(4), np.eye(4)),  # its real spacing is lost
        (52, LPS, WITHOUT_GEOMETRY),  # a label map that nobody gave a geometry
        (85, LPS, LPS @ np.diag([1, 1, 1.004, 1])),
    ):
        save(second / f"volume-{number}.nii", image(number), affine)
        save(second / f"segmentation-{number}.nii", labels(number), label_affine)
    return second


def test_lits_keeps_files_that_are_sound_and_gives_labels_their_images_geometry(
    tmp_path, raw, save, check_dataset, capsys
):
    folder = tmp_path / "LiTS"
    second = write_lits(folder, save)
    save(folder / "Test/test-volume-3.nii", image(3), LPS)
    assert run("lits", folder) == 0
    said = capsys.readouterr().out
    dataset = raw / "Dataset029_LiTS"
    assert check_dataset(dataset)["file_ending"] == ".nii"
    assert names(dataset / "labelsTr") == [f"volume-{n}.nii" for n in (0, 10, 28, 52, 85)]
    assert names(dataset / "imagesTs") == ["test-volume-3_0000.nii"]
    for number in (0, 10, 28, 52, 85):
        assert np.array_equal(read(dataset / f"imagesTr/volume-{number}_0000.nii"), image(number).T)
        assert np.array_equal(read(dataset / f"labelsTr/volume-{number}.nii"), labels(number).T)
    for number in (52, 85):
        given, taken = (
            sitk.ReadImage(str(dataset / name))
            for name in (f"labelsTr/volume-{number}.nii", f"imagesTr/volume-{number}_0000.nii")
        )
        assert given.IsSameImageGeometryAs(taken)
    assert (second / "volume-52.nii").samefile(dataset / "imagesTr/volume-52_0000.nii")
    assert (second / "segmentation-28.nii").samefile(dataset / "labelsTr/volume-28.nii")
    found = notes(dataset)
    assert found["volume-0"] == found["volume-10"] == []
    assert "1 x 1 x 1 mm" in found["volume-28"][0]
    assert "without a geometry" in found["volume-52"][0] and "another spacing" in found["volume-85"][0]
    assert "warning: 131 cases are published; not in" in said and ": volume-1, volume-2, volume-3, " in said
    assert names(raw) == ["Dataset029_LiTS"]


def test_lits_leaves_out_what_is_not_certain_and_says_why(tmp_path, raw, save, check_dataset, capsys):
    folder = tmp_path / "LiTS"
    second = write_lits(folder, save)
    bad = {
        "volume-90": (image(90), LPS, labels(90), RAS),
        "volume-91": (image(91), LPS, labels(91)[:, :, 1:], LPS),
        "volume-92": (image(92), LPS, labels(92) + 1, LPS),
        "volume-93": (image(93), LPS, labels(93) * 0.5, LPS),
        "volume-94": (image(94), LPS, labels(94), LPS),
        "volume-95": (image(95), LPS, labels(95), LPS),
        "volume-96": (np.where(image(96) > 1490, np.nan, 0), LPS, labels(96), LPS),
    }
    for name, (values, affine, label_values, label_affine) in bad.items():
        save(second / f"{name}.nii", values, affine)
        save(second / f"{name.replace('volume', 'segmentation')}.nii", label_values, label_affine)
    content = (second / "volume-94.nii").read_bytes()
    (second / "volume-94.nii").write_bytes(content[: len(content) // 2])
    header = bytearray((second / "volume-95.nii").read_bytes())
    header[80:92], header[252:256] = np.zeros(3, np.float32).tobytes(), bytes(4)  # pixdim, and the codes of affines
    (second / "volume-95.nii").write_bytes(header)
    save(second / "volume-97.nii", image(97), LPS)
    save(second / "segmentation-98.nii", labels(98), LPS)
    save(folder / "again/volume-0.nii", image(0), RAS)
    assert run("lits", folder) == 1
    found = reasons(capsys.readouterr().out)
    for name, file, said in (
        ("volume-90", "segmentation-90.nii", "run in other directions than those of its image"),
        ("volume-91", "segmentation-91.nii", "has 20 x 18 x 8 voxels, its image 20 x 18 x 9"),
        (
            "volume-92",
            "segmentation-92.nii",
            "has the values 1, 2, 3, but the labels of LiTS: liver and its tumours are 0 to 2",
        ),
        ("volume-93", "segmentation-93.nii", "has the values 0, 0.5, 1, but"),
        ("volume-94", "volume-94.nii", "cannot be read, it is truncated"),
        ("volume-95", "volume-95.nii", "has a voxel spacing of 0 x 0 x 0 mm"),
        ("volume-96", "volume-96.nii", "NaN"),
        ("volume-97", "volume-97.nii", "has no label map beside it"),
        ("volume-98", "segmentation-98.nii", "has no image"),
        ("volume-0", "volume-0.nii", "is there 2 times"),
    ):
        assert f"/{file}: " in found[name] and said in found[name], (name, found.get(name))
        assert "; " in found[name], "what to do"
        del found[name]
    assert not found
    dataset = raw / "Dataset029_LiTS"
    assert check_dataset(dataset)["numTraining"] == 4
    assert names(dataset / "imagesTr") == [f"volume-{n}_0000.nii" for n in (10, 28, 52, 85)]


def test_kits19_gets_axes_in_the_order_of_pretraining(tmp_path, raw, save, check_dataset, capsys):
    folder, shape = tmp_path / "kits19", SHAPE[::-1]  # slices, height, width
    for number, label_affine in ((0, SLICES_FIRST), (1, None), (209, SLICES_FIRST)):
        case = folder / f"data/case_{number:05d}"
        save(case / "imaging.nii.gz", image(number, shape).astype(np.float32), SLICES_FIRST)
        save(case / "segmentation.nii.gz", labels(number, shape=shape), label_affine)
    save(folder / "data/case_00210/imaging.nii.gz", image(210, shape), SLICES_FIRST)
    save(folder / "data/case_00002/imaging.nii.gz", image(2, shape), SLICES_FIRST)
    save(folder / "data/case_00002/segmentation.nii.gz", labels(2, shape=SHAPE), None)
    first_release = np.diag([2.5, 0.9, 0.9, 1])
    save(folder / "data/case_00003/imaging.nii.gz", image(3, shape), first_release)
    save(folder / "data/case_00003/segmentation.nii.gz", labels(3, shape=shape), first_release)
    assert run("kits19", folder, "-d", 41) == 1
    left_out = reasons(capsys.readouterr().out)
    assert left_out.keys() == {"case_00002", "case_00003"}
    assert "case_00002/segmentation.nii.gz: has 20 x 18 x 9 voxels, its image 9 x 18 x 20" in left_out["case_00002"]
    assert "case_00003/imaging.nii.gz: has pixels of 2.5 x 0.9 x 0.9 mm along left-right" in left_out["case_00003"]
    dataset = raw / "Dataset041_KiTS19"
    assert check_dataset(dataset)["labels"] == {"background": 0, "kidney": 1, "tumour": 2}
    for number in (0, 1, 209):
        case = f"case_{number:05d}"
        turned = sitk.ReadImage(str(dataset / f"imagesTr/{case}_0000.nii.gz"))
        # ITK's arrays are (z, y, x): slices come headward, rows and columns stay
        assert np.array_equal(sitk.GetArrayFromImage(turned), image(number, shape)[::-1])
        assert np.array_equal(read(dataset / f"labelsTr/{case}.nii.gz"), labels(number, shape=shape)[::-1])
        assert np.allclose(turned.GetSpacing(), (0.9, 0.9, 2.5))
        assert np.allclose(turned.GetDirection(), np.eye(3).ravel())
        stored = sitk.ReadImage(str(folder / f"data/{case}/imaging.nii.gz"))
        corner = stored.TransformIndexToPhysicalPoint((SHAPE[2] - 1, 0, 0))
        assert np.allclose(turned.GetOrigin(), corner, atol=1e-4)  # the body stays where it was
    assert names(dataset / "imagesTs") == ["case_00210_0000.nii.gz"]
    assert np.array_equal(read(dataset / "imagesTs/case_00210_0000.nii.gz"), image(210, shape)[::-1])


def write_decathlon(folder: Path, save, stem: str, highest: int) -> None:
    """Three cases and a test image of a task; the second case with a fourth axis of 1, the third with float labels."""
    for number, values, label_values in (
        (1, image(1), labels(1, highest)),
        (2, image(2)[..., None].astype(np.float32), labels(2, highest)[..., None]),
        (3, image(3), labels(3, highest).astype(np.float64)),
    ):
        save(folder / f"imagesTr/{stem}_{number:03d}.nii.gz", values, RAS)
        save(folder / f"labelsTr/{stem}_{number:03d}.nii.gz", label_values, RAS)
    save(folder / f"imagesTs/{stem}_007.nii.gz", image(7), RAS)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part / f"._{stem}_001.nii.gz").write_bytes(b"\0\5\x16\7 as macOS leaves it")
    listed = [{"image": f"./imagesTr/{stem}_{n:03d}.nii.gz", "label": "..."} for n in (1, 2, 3, 5)]
    listing = {"name": stem, "numTraining": 4, "training": listed, "test": []}
    (folder / "dataset.json").write_text(json.dumps(listing))


@pytest.mark.parametrize(
    ("task", "folder", "published", "label_names"),
    [
        ("lung", "Task06_Lung", 63, ["cancer"]),
        ("pancreas", "Task07_Pancreas", 281, ["pancreas", "tumour"]),
        ("hepatic_vessel", "Task08_HepaticVessel", 303, ["vessel", "tumour"]),
        ("spleen", "Task09_Spleen", 41, ["spleen"]),
        ("colon", "Task10_Colon", 126, ["cancer"]),
    ],
)
def test_the_decathlons_tasks(task, folder, published, label_names, tmp_path, raw, save, check_dataset, capsys):
    stem, highest = folder[7:].lower(), len(label_names)
    write_decathlon(tmp_path / folder, save, stem, highest)
    assert run(task, tmp_path / folder) == 0
    assert (
        f"warning: {published} cases are published; not in {tmp_path / folder}: {stem}_005\n" in capsys.readouterr().out
    )
    dataset = raw / f"Dataset0{folder[4:]}"
    description = check_dataset(dataset)
    assert list(description["labels"]) == ["background", *label_names]
    assert (description["numTraining"], description["file_ending"]) == (3, ".nii.gz")
    for number in (1, 2, 3):
        name = f"{stem}_{number:03d}"
        assert np.array_equal(read(dataset / f"imagesTr/{name}_0000.nii.gz"), image(number).T)
        assert np.array_equal(read(dataset / f"labelsTr/{name}.nii.gz"), labels(number, highest).T)
        for path in (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"):
            assert nib.load(dataset / path).header["dim"][0] == 3
    assert nib.load(dataset / f"labelsTr/{stem}_003.nii.gz").get_data_dtype() == np.uint8
    first = f"{stem}_001.nii.gz"
    assert (tmp_path / folder / "labelsTr" / first).samefile(dataset / "labelsTr" / first)
    assert names(dataset / "imagesTs") == [f"{stem}_007_0000.nii.gz"]
    assert notes(dataset)[f"{stem}_001"] == []


def test_of_two_suffixes_one_is_written(tmp_path, raw, save, check_dataset, capsys):
    """nnU-Net wants one for all; mirrors of LiTS have packed some of its files."""
    folder = tmp_path / "LiTS"
    for number, suffix, label_suffix in ((0, "nii", "nii"), (1, "nii.gz", "nii"), (2, "nii.gz", "nii.gz")):
        save(folder / f"volume-{number}.{suffix}", image(number), LPS)
        save(folder / f"segmentation-{number}.{label_suffix}", labels(number), LPS)
    assert run("lits", folder) == 0
    dataset = raw / "Dataset029_LiTS"
    assert check_dataset(dataset)["file_ending"] == ".nii.gz"
    for number in range(3):
        for name, values in (
            (f"imagesTr/volume-{number}_0000", image(number)),
            (f"labelsTr/volume-{number}", labels(number)),
        ):
            assert np.array_equal(read(dataset / f"{name}.nii.gz"), values.T)
            assert (dataset / f"{name}.nii.gz").read_bytes().startswith(GZIP)
