"""What `cads_tasks convert` refuses, and what becomes of a conversion that is stopped, killed or runs out of room."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunetv2_cads.tasks import write_files
from nnunetv2_cads.tasks.cli import main

REPOSITORY = Path(__file__).parents[3]
COMMAND = [sys.executable, "-c", "import sys; from nnunetv2_cads.tasks.cli import main; sys.exit(main())", "convert"]
SLICES_FIRST = np.array([[0, 0, -0.9, 0], [0, -0.9, 0, 0], [-2.5, 0, 0, 0], [0, 0, 0, 1.0]])
CASES = 4


@pytest.fixture
def kits19(tmp_path, save):
    """A download whose files must all be rewritten."""
    rng = np.random.default_rng(0)
    for number in range(CASES):
        case = tmp_path / f"kits19/data/case_{number:05d}"
        values = rng.integers(-1024, 1500, (9, 18, 20)).astype(np.int16)
        save(case / "imaging.nii.gz", values, SLICES_FIRST)
        save(case / "segmentation.nii.gz", (values > 900).astype(np.uint8), SLICES_FIRST)
    return tmp_path / "kits19"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, "kits19", str(folder), "-np", "1"], env=environment(), encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_sentence(capsys) -> str:
    error = capsys.readouterr().err
    sentence = error.strip().splitlines()[-1]
    assert sentence.startswith("error: ") and "Traceback" not in error, error
    return sentence.removeprefix("error: ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe makes the third case wait")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_conversion_resumes(number, kits19, raw):
    third = kits19 / "data/case_00002/imaging.nii.gz"
    content = third.read_bytes()
    third.unlink()
    os.mkfifo(third)
    process = start(kits19)
    records = raw / ".Dataset040_KiTS19.converting" / "cases"
    while len(list(records.glob("case_*.json"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait()
        os.close(os.open(third, os.O_RDWR | os.O_NONBLOCK))  # its worker waits for the pipe, and may leave now
    output, _ = process.communicate(timeout=120)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number], output
    finished = ["case_00000", "case_00001"]
    assert names(records) == [f"{name}.json" for name in finished]
    assert names(raw) == [".Dataset040_KiTS19.converting"]
    images = records.parent / "dataset" / "imagesTr"
    before = [(images / f"{name}_0000.nii.gz").stat().st_ino for name in finished]
    (images / ".case_00002_0000.nii.gz.0123.tmp").write_bytes(b"half")  # what a kill can leave
    (images / "case_00009_0000.nii.gz").write_bytes(b"of a case that is no longer there")
    third.unlink()
    third.write_bytes(content)
    process = start(kits19)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert names(raw) == ["Dataset040_KiTS19"]
    images = raw / "Dataset040_KiTS19" / "imagesTr"
    assert names(images) == [f"case_{n:05d}_0000.nii.gz" for n in range(CASES)]
    assert [(images / f"{name}_0000.nii.gz").stat().st_ino for name in finished] == before
    for n in range(CASES):
        stored = nib.load(kits19 / f"data/case_{n:05d}/imaging.nii.gz").get_fdata()
        assert np.array_equal(nib.load(images / f"case_{n:05d}_0000.nii.gz").get_fdata().T, stored[::-1])


def test_where_no_case_can_be_used_nothing_is_left(kits19, raw, capsys):
    label_maps = sorted((kits19 / "data").glob("*/segmentation.nii.gz"))
    good = label_maps[0].read_bytes()
    for path in label_maps:
        path.write_bytes(good[:200])
    label_maps[1].unlink()
    assert main(["convert", "kits19", str(kits19), "-np", "1"]) == 2
    assert "no case could be used: case_00001 (and 3 more): " in one_sentence(capsys)
    assert names(raw) == []
    label_maps[0].write_bytes(good)
    assert main(["convert", "kits19", str(kits19), "-np", "1"]) == 1
    assert json.loads((raw / "Dataset040_KiTS19/dataset.json").read_text())["numTraining"] == 1


def test_a_dataset_that_exists_is_left_as_it_is(kits19, raw, capsys):
    present = raw / "Dataset040_KiTS19"
    present.mkdir(parents=True)
    (present / "mine").write_text("precious")
    assert main(["convert", "kits19", str(kits19)]) == 2
    assert one_sentence(capsys) == f"{present}: exists and is left as it is; remove it, or give another number with -d"
    assert names(raw) == ["Dataset040_KiTS19"] and names(present) == ["mine"]
    present.rename(raw / "Dataset040_Other")
    assert main(["convert", "kits19", str(kits19)]) == 2
    assert "-d 40: nnU-Net's folders have Dataset040_Other; give another number" in one_sentence(capsys)


def test_bad_arguments_end_with_one_sentence(tmp_path, raw, monkeypatch, capsys):
    for arguments in ([], ["convert"], ["convert", "brain", "."], ["convert", "lung", ".", "-d", "0"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    capsys.readouterr()
    assert main(["convert", "lung", str(tmp_path / "nowhere")]) == 2
    assert one_sentence(capsys).startswith(f"{tmp_path / 'nowhere'}: no such folder; give ")
    (tmp_path / "Task06_Lung.tar").touch()
    assert main(["convert", "lung", str(tmp_path)]) == 2
    assert re.match(rf"{tmp_path}: holds no image of .*lung_NNN.nii.gz.*; unpack the download", one_sentence(capsys))
    assert main(["convert", "lung", str(tmp_path), "-d", "1000"]) == 2
    assert "from 1 to 999" in one_sentence(capsys)
    monkeypatch.delenv("nnUNet_raw")
    assert main(["convert", "lung", str(tmp_path)]) == 2
    assert "export nnUNet_raw=" in one_sentence(capsys)
    assert not raw.exists()


def test_files_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"voxels")

    def refuse(*_paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(write_files.os, "link", refuse)
    write_files.take(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"voxels" and not (tmp_path / "a").samefile(tmp_path / "b")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a file system of the test's own needs root")
def test_a_full_disk_ends_with_one_sentence(kits19, raw):
    raw.mkdir()
    mount = 'mount -t tmpfs -o size=24k tmpfs "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, str(raw), *COMMAND, "kits19", str(kits19), "-np", "1"],
        env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip("unshare does not work here")
    assert done.returncode == 2, done.stderr
    folder = raw / ".Dataset040_KiTS19.converting" / "dataset"
    said = f"error: {folder}: No space left on device; make room and start again"
    assert done.stderr.splitlines()[-1] == said
    assert "Traceback" not in done.stderr
