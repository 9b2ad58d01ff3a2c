"""No name, identifier or absolute path of the source gets into a store, a log or a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from tiny_run import TINY_RUN

import pretraining
from pretraining.store.store import Store, read_manifest

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}
HEADER = {
    "0010|0010": "Mustermann^Erika", "0010|0020": "PID-4711-XY", "0010|0030": "19640812", "0008|0050": "ACC-998877",
    "0008|0080": "Klinikum Musterstadt", "0008|0090": "Doctor^Referring", "0020|0010": "STUDY-55",
    "0008|103e": "thorax of erika", "0020|000d": "1.2.826.0.1.3680043.2.1125.4711", "0008|0060": "CT",
    "0020|000e": "1.2.826.0.1.3680043.2.1125.4712", "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
}  # fmt: skip
PRIVATE_IN_HEADER = [value for tag, value in HEADER.items() if tag not in ("0008|0060", "0008|0016")]
PRIVATE_IN_FOLDERS = ["Erika_Mustermann", "born_1964", "abdomen_of_erika"]
TINY = [*TINY_RUN, "--epochs=1", "--epoch-samples=2", "--warmup-epochs=0", "--num-workers=0"]


def run(name: str, *arguments) -> tuple[int, str]:
    command = [sys.executable, "-c", f"import sys; from pretraining.{name} import main; sys.exit(main())"]
    result = subprocess.run(
        [*command, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=300
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout + result.stderr


def write_series(image: sitk.Image, folder: Path) -> None:
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(image.GetDepth()):
        piece = image[:, :, index]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        header = {
            **HEADER, "0008|0018": f"{HEADER['0020|000e']}.{index + 1}", "0020|0013": str(index + 1),
            "0020|0032": "\\".join(map(str, position)), "0020|0037": "1\\0\\0\\0\\1\\0",
        }  # fmt: skip
        for tag, value in header.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index:03}.dcm"))
        writer.Execute(piece)


@pytest.fixture
def archive(tmp_path, make_body):
    """A DICOM series with a full header, a NIfTI file, and a broken one, in folders with a name."""
    folder = tmp_path / "archive_by_path"
    write_series(make_body(), folder / "Erika_Mustermann")
    sitk.WriteImage(make_body(seed=1), str(folder / "Erika_Mustermann" / "abdomen_of_erika.nii.gz"))
    (folder / "born_1964.nii.gz").write_bytes(b"broken")
    return folder


def found(folder: Path, needles: list[str]) -> list[tuple[str, str]]:
    """(file, needle) wherever a needle stands in a file's name or content."""
    finds = []
    for file in folder.rglob("*"):
        content = str(file.relative_to(folder)).encode() + (file.read_bytes() if file.is_file() else b"")
        finds += [(str(file), needle) for needle in needles if needle.lower().encode() in content.lower()]
    return finds


def test_no_header_and_no_absolute_path_gets_out(archive, tmp_path):
    store, output = tmp_path / "store", tmp_path / "run"
    code, messages = run("preprocess", archive, store, "-np", 1)
    assert code == 1 and len(Store.open(store)) == 2, messages
    code, messages_of_training = run("train", store, output, *TINY)
    assert code == 0, messages_of_training
    assert not [needle for needle in PRIVATE_IN_HEADER if needle in messages + messages_of_training]
    needles = [*PRIVATE_IN_HEADER, str(tmp_path), "archive_by_path", str(Path.home()) + "/"]
    assert not found(store, needles) and not found(output, needles)
    assert found(store, ["Erika_Mustermann"])  # the relative name is kept, as documented, unless:


def test_an_anonymised_store_reveals_no_names_and_can_be_added_to(archive, tmp_path, make_body):
    store, output = tmp_path / "store", tmp_path / "run"
    code, messages = run("preprocess", archive, store, "-np", 1, "--anonymise")
    assert code == 1, messages
    code, messages_of_training = run("train", store, output, *TINY)
    assert code == 0, messages_of_training
    names = [*PRIVATE_IN_HEADER, *PRIVATE_IN_FOLDERS]
    assert not [name for name in names if name in messages + messages_of_training]
    failed = json.loads((store / "private" / "failed.json").read_text())
    assert [entry["file"] for entry in failed] == ["born_1964.nii.gz"]  # needed to act on it
    assert (store / "private").stat().st_mode & 0o77 == 0 and (store / "private" / "key").stat().st_mode & 0o77 == 0
    assert all("private" in file for file, _ in found(store, [*names, str(tmp_path)]))
    assert not found(output, [*names, str(tmp_path)])
    ids = Store.open(store).ids
    before = {name: (store / "volumes" / f"{name}.json").stat().st_mtime_ns for name in ids}
    sitk.WriteImage(make_body(seed=2), str(archive / "born_1964.nii.gz"))
    code, messages = run("preprocess", archive, store, "-np", 1, "--anonymise")
    assert code == 0, messages
    assert len(Store.open(store)) == 3 and set(ids) < set(Store.open(store).ids)
    assert before == {name: (store / "volumes" / f"{name}.json").stat().st_mtime_ns for name in ids}
    assert all(entry["source"]["path"].isalnum() for entry in read_manifest(store)["volumes"].values())


def test_parts_use_one_key_and_another_store_another(archive, tmp_path):
    command = [sys.executable, "-c", "import sys; from pretraining.preprocess import main; sys.exit(main())"]
    parts = tmp_path / "parts"
    arguments = [str(archive), str(parts), "-np", "1", "--anonymise", "-num_parts", "2", "-part_id"]
    processes = [subprocess.Popen([*command, *arguments, str(i)], env=ENVIRONMENT) for i in range(2)]
    assert sorted(process.wait(timeout=300) for process in processes) == [0, 1]
    assert len(Store.open(parts)) == 2
    assert run("preprocess", archive, tmp_path / "other", "-np", 1, "--anonymise")[0] == 1
    assert not set(Store.open(parts).ids) & set(Store.open(tmp_path / "other").ids)


def test_a_store_is_anonymised_from_its_beginning_or_not_at_all(archive, tmp_path):
    assert run("preprocess", archive, tmp_path / "a", "-np", 1, "--anonymise")[0] == 1
    code, messages = run("preprocess", archive, tmp_path / "a", "-np", 1)
    assert code == 2 and "was begun with --anonymise; give it again" in messages
    (tmp_path / "a" / "private" / "key").unlink()
    code, messages = run("preprocess", archive, tmp_path / "a", "-np", 1, "--anonymise")
    assert code == 2 and "key: missing, and nothing can be added without it" in messages
    assert run("preprocess", archive, tmp_path / "b", "-np", 1)[0] == 1
    code, messages = run("preprocess", archive, tmp_path / "b", "-np", 1, "--anonymise")
    assert code == 2 and "was begun without --anonymise; leave it out" in messages
