"""`cads_preprocess` itself, on real files: one result for any orientation, resuming, stopping, unusable input."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import pretraining
from pretraining.store.store import Store
from pretraining.store.writer import StoreWriter
from pretraining.system.errors import UserError

COMMAND = [sys.executable, "-c", "import sys; from pretraining.preprocess import main; sys.exit(main())"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}


def start(*arguments, **options) -> subprocess.Popen:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", **options
    )


def run(*arguments) -> tuple[int, str]:
    process = start(*arguments)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def failures(store) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in json.loads((store / "failed.json").read_text())}


@pytest.fixture
def scans(tmp_path, make_body):
    """A folder of three small scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(3):
        sitk.WriteImage(make_body(seed=index), str(folder / f"scan_{index}.nii.gz"))
    return folder


@pytest.mark.parametrize(
    ("flags", "line"),
    [([], "3 files are no CT: 2 .txt, 1 without suffix (not DICOM)"), (["--anonymise"], "3 files are no CT")],
)
def test_what_is_no_ct_is_counted_at_the_end(scans, tmp_path, flags, line):
    for name in ("a.txt", "b.txt", "README"):
        (scans / name).write_text("no CT")
    code, output = run(scans, tmp_path / "store", "-np", 1, *flags)
    assert code == 0 and output.splitlines()[-1].endswith(line), output


def test_input_without_ct_is_told_what_it_holds(tmp_path):
    (tmp_path / "a.txt").write_text("no CT")
    code, output = run(tmp_path, tmp_path / "store")
    assert code == 2 and "holds no CT scan (1 file is no CT: 1 .txt); put" in output.splitlines()[-1]


def test_one_result_for_all_48_orientations(tmp_path, make_body):
    body = make_body(spacing_xyz_mm=(0.8, 1.1, 1.7))
    for index, letters in enumerate(letters for axes in permutations(("RL", "AP", "IS")) for letters in product(*axes)):
        stored = sitk.DICOMOrient(body, "".join(letters))
        sitk.WriteImage(stored, str(tmp_path / f"{''.join(letters)}.{('nrrd', 'nii.gz', 'mha')[index % 3]}"))
    code, output = run(tmp_path, tmp_path / "store", "-np", 2)
    assert code == 1, output
    store = Store.open(tmp_path / "store")
    assert store.ids == ["AIL"]  # the first by name of 48 that are one
    assert len(failures(store.path)) == 47 and all("volume 'AIL'" in why for why in failures(store.path).values())
    assert len({path.read_bytes() for path in store.path.glob("radiographs/*.npy")}) == 1
    volume = store.volume("AIL")[:]
    expected = tuple(round(edge * spacing) for edge, spacing in zip((30, 36, 44), (1.7, 1.1, 0.8), strict=True))
    assert volume.shape == expected
    middle = [edge // 2 for edge in expected]
    assert volume[middle[0], int(0.75 * expected[1]), middle[2]] > 500  # the spine is at the back
    assert volume[int(0.7 * expected[0]), middle[1], int(0.7 * expected[2])] < -600  # the lung left and high
    assert volume.min() >= -1024


def test_real_scans(tmp_path, ct_dir, reference_dir):
    code, output = run(ct_dir, tmp_path / "store", "-np", 2)
    files = [path.relative_to(ct_dir).as_posix() for path in ct_dir.rglob("*.nii.gz")]
    label_maps = {name for name in files if name.endswith(("_seg.nii.gz", "_vertebrae.nii.gz", "_artery.nii.gz"))}
    assert code == 1
    assert set(failures(tmp_path / "store")) == label_maps
    assert all("not HU" in reason for reason in failures(tmp_path / "store").values())
    assert "exit code 1" in output
    store = Store.open(tmp_path / "store")
    assert len(store) == len(files) - len(label_maps)
    # The reference was made on another grid than the store's (linear, stored orientation, first voxel kept): the
    # abdomen lies 2 mm apart, which costs 0.005. On the reference's own grid, test_radiograph.py asks for over 0.995.
    with np.load(reference_dir / "frontal_drr_reference.npz") as reference:
        for volume_id, name in (("chest_2mm", "ricord"), ("abdomen_3mm", "abdomen")):
            radiograph, expected = store.radiograph(volume_id), reference[name]
            assert radiograph.shape == expected.shape  # slices x width: frontal
            pictures = (radiograph, radiograph[:, ::-1])
            assert max(np.corrcoef(picture.ravel(), expected.ravel())[0, 1] for picture in pictures) > 0.99


def test_adds_what_is_new_and_leaves_the_rest_alone(scans, tmp_path, make_body):
    store = tmp_path / "store"
    assert run(scans, store)[0] == 0
    assert failures(store) == {}
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/*")}
    sitk.WriteImage(make_body(seed=9), str(scans / "more.mha"))
    os.utime(scans / "scan_0.nii.gz")  # a copy has new times and the same content
    code, output = run(scans, store)
    assert code == 0, output
    assert f"volumes in {store}: 4;" in output and f"pre-train on it with: cads_pretrain {store} RUN" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(Store.open(store)) == 4


@pytest.mark.parametrize("anonymise", [(), ("--anonymise",)])
def test_of_scans_with_the_same_voxels_one_gets_in(scans, tmp_path, anonymise):
    store = tmp_path / "store"
    summary = store / "private" if anonymise else store
    shutil.copy(scans / "scan_1.nii.gz", scans / "scan_9.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(scans / "scan_1.nii.gz")), str(scans / "a.mha"))
    for _ in range(2):  # and again: nothing is made anew, lost or let in
        code, output = run(scans, store, *anonymise)
        assert code == 1 and "scans that could not be used: 2 (exit code 1)" in output
        left_out = failures(summary)
        ids = Store.open(store).ids
        assert len(ids) == 3 and len(list(store.glob("volumes/*.json"))) == 5
        if anonymise:
            assert len(left_out) == 2 and not [name for name in left_out if name in output]
        else:
            assert set(left_out) == {"scan_1.nii.gz", "scan_9.nii.gz"} and "a" in ids
            assert left_out["scan_9.nii.gz"].startswith("has the same voxels as volume 'a' (a.mha), so it is left out")
        before = {path: path.stat().st_mtime_ns for path in store.glob("volumes/*")}
    assert {path: path.stat().st_mtime_ns for path in store.glob("volumes/*")} == before
    for name in left_out:
        (scans / name).unlink()  # what the reason advises
    assert run(scans, store, *anonymise)[0] == 0
    assert failures(summary) == {} and Store.open(store).ids == ids


def test_the_last_copy_of_a_scan_is_never_called_a_duplicate(scans, tmp_path, make_body):
    store = tmp_path / "store"
    first, copy = scans / "scan_1.nii.gz", scans / "scan_9.nii.gz"
    shutil.copy(first, copy)
    assert run(scans, store)[0] == 1 and list(failures(store)) == [copy.name]
    ids = Store.open(store).ids
    content = first.read_bytes()
    first.unlink()  # the other one than the reason advises
    assert run(scans, store)[0] == 0
    assert failures(store) == {} and Store.open(store).ids == ids
    renamed = scans / "scan_a.nii.gz"
    renamed.write_bytes(content)
    assert run(scans, store)[0] == 1
    assert list(failures(store)) == [renamed.name] and f"({copy.name})" in failures(store)[renamed.name]
    renamed.unlink()
    sitk.WriteImage(make_body(seed=7), str(first))  # another scan in the place of the first
    assert run(scans, store)[0] == 1
    assert list(failures(store)) == [first.name] and "was made from" in failures(store)[first.name]
    (store / "volumes" / "scan_1.json").unlink()  # what the reason advises
    assert run(scans, store)[0] == 0
    assert failures(store) == {} and Store.open(store).ids == [*ids, "scan_9"]


def test_a_scan_with_the_name_of_a_stored_one_is_not_to_be_removed(scans, tmp_path):
    """Where the file of that one is gone, this may be its last copy."""
    store = tmp_path / "store"
    run(scans, store)
    sitk.WriteImage(sitk.ReadImage(str(scans / "scan_1.nii.gz")), str(scans / "scan_1.mha"))
    (scans / "scan_1.nii.gz").unlink()
    assert run(scans, store)[0] == 1
    reason = failures(store)["scan_1.mha"]
    assert "so would scan_1.nii.gz, which is not in INPUT any more; rename this" in reason and "remove" not in reason


def test_changed_source_is_noticed_and_nothing_overwritten(scans, tmp_path, make_body):
    store = tmp_path / "store"
    run(scans, store)
    fingerprint = Store.open(store).fingerprint()
    sitk.WriteImage(make_body((40, 36, 44)), str(scans / "scan_1.nii.gz"))
    code, _ = run(scans, store)
    assert code == 1
    assert "was made from" in failures(store)["scan_1.nii.gz"]
    assert Store.open(store).fingerprint() == fingerprint
    (store / "volumes" / "scan_1.json").unlink()  # what the reason advises
    assert run(scans, store)[0] == 0
    assert Store.open(store).shape("scan_1") == (40, 36, 44)


def test_one_bad_scan_does_not_stop_the_rest(scans, tmp_path, make_body):
    content = (scans / "scan_0.nii.gz").read_bytes()
    (scans / "broken.nii.gz").write_bytes(content[: len(content) // 2])
    sitk.WriteImage(make_body(), str(scans / "scan_1.nrrd"))
    sitk.WriteImage(make_body((20, 36, 44)), str(scans / "thin.nrrd"))
    code, output = run(scans, tmp_path / "store", "-np", 2)
    assert code == 1
    reasons = failures(tmp_path / "store")
    assert set(reasons) == {"broken.nii.gz", "scan_1.nii.gz", "scan_1.nrrd", "thin.nrrd"}
    assert "scan_1.nrrd" in reasons["scan_1.nii.gz"] and "rename" in reasons["scan_1.nii.gz"]
    assert "covers 20 mm" in reasons["thin.nrrd"]
    assert Store.open(tmp_path / "store").ids == ["scan_0", "scan_2"]
    assert "Traceback" not in output
    assert (tmp_path / "store" / "radiographs.png").stat().st_size > 1000


def test_single_file_and_store_inside_input(scans):
    assert run(scans / "scan_1.nii.gz", scans / "store")[0] == 0
    assert Store.open(scans / "store").ids == ["scan_1"]
    code, _ = run(scans, scans / "store")
    assert code == 0
    assert Store.open(scans / "store").ids == ["scan_0", "scan_1", "scan_2"]


def old_store(folder):
    StoreWriter(folder).prepare()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 0}))


def write_file(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text("something")


@pytest.mark.parametrize(
    ("source", "store", "make", "reason"),
    [
        ("missing", "store", lambda folder: None, "no such file or folder"),
        ("empty", "store", lambda folder: (folder / "empty").mkdir(), "holds no CT scan"),
        ("empty", "store", lambda folder: write_file(folder / "empty" / "notes.txt"), "holds no CT scan"),
        ("scans", "store", lambda folder: write_file(folder / "store" / "thesis.tex"), "not empty and not a store"),
        ("scans", "store", lambda folder: write_file(folder / "store"), "is a file"),
        ("scans", "store", lambda folder: old_store(folder / "store"), "format version 0"),
        ("scans", "scans", lambda folder: None, "not empty and not a store"),
        ("scans", "file/store", lambda folder: write_file(folder / "file"), "cannot be"),
        ("bad", "store", lambda folder: write_file(folder / "bad" / "a.nii.gz"), "a.nii.gz: cannot be read"),
        ("notes.txt", "store", lambda folder: write_file(folder / "notes.txt"), "is no CT file; give NIfTI"),
        ("bad/a.nii.gz", "store", lambda folder: write_file(folder / "bad" / "a.nii.gz"), "a.nii.gz: cannot be read"),
    ],
)
def test_nothing_could_be_done(scans, tmp_path, source, store, make, reason):
    make(tmp_path)
    before = sorted(tmp_path.rglob("*")) if source != "bad" else None
    code, output = run(tmp_path / source, tmp_path / store)
    assert code == 2
    assert reason in output
    assert "Traceback" not in output
    assert len([line for line in output.splitlines() if line.startswith("error: ")]) == 1
    if not source.startswith("bad"):
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_store_without_write_permission(scans, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, output = run(scans, tmp_path / "locked" / "store")
    assert code == 2
    assert "cannot be written" in output


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="gives up root's right to list any folder with setpriv")
def test_a_folder_that_cannot_be_listed_is_reported(scans, tmp_path, make_body):
    """What it holds is not known: passed over without a word, its scans would be lost."""
    (scans / "closed").mkdir()
    sitk.WriteImage(make_body(seed=5), str(scans / "closed" / "b.nii"))
    (scans / "closed").chmod(0)
    as_anybody = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    words = [*as_anybody, *COMMAND, str(scans), str(tmp_path / "store"), "-np", "1"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=150)
    (scans / "closed").chmod(0o700)
    assert done.returncode == 1, done.stderr
    reasons = failures(tmp_path / "store")
    assert list(reasons) == ["closed"] and "is a folder that cannot be listed (Permission denied)" in reasons["closed"]
    assert run(scans, tmp_path / "store")[0] == 0
    assert len(Store.open(tmp_path / "store")) == 4 and not failures(tmp_path / "store")


@pytest.mark.parametrize("processes", ["0", "-1", "two"])
def test_impossible_number_of_processes(scans, tmp_path, processes):
    code, output = run(scans, tmp_path / "store", "-np", processes)
    assert code == 2
    assert "-np" in output


def living(group: int) -> list[int]:
    """Processes of a process group that have not ended (zombies have)."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            alive.append(int(stat.parent.name))
    return alive


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("signum", "whole_group", "code"),
    [
        (signal.SIGINT, True, 130),  # Ctrl-C reaches every process of the group
        (signal.SIGTERM, False, 143),
        (signal.SIGKILL, False, -9),
        (signal.SIGKILL, True, -9),
    ],
)
def test_goes_on_after_a_stop(tmp_path, make_body, signum, whole_group, code):
    source, store = tmp_path / "scans", tmp_path / "store"
    source.mkdir()
    for index in range(6):
        sitk.WriteImage(make_body((60, 120, 120), (1.0, 1.2, 1.3), seed=index), str(source / f"{index}.nii"))
    flags = ("-np", 2, "--scan-minutes", 9)
    process = start(source, store, *flags, start_new_session=True)
    entries = store / "volumes"
    wait_for(lambda: len(list(entries.glob("*.json"))) >= 1)
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    wait_for(lambda: not living(process.pid))
    if signum != signal.SIGKILL:
        command = shlex.join(["cads_preprocess", *map(str, (source, store, *flags))])
        assert f"To resume, give the same command: {command}\n" in output and "Traceback" not in output
        assert not list(store.rglob(".*.tmp"))
    with pytest.raises(UserError, match="not finished"):
        Store.open(store)
    done = set(StoreWriter(store).finished())
    assert 1 <= len(done) < 6
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/*") if path.name.split(".")[0] in done}
    code, output = run(source, store, "-np", 2)
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(store.rglob(".*.tmp"))
    assert Store.open(store).ids == [str(index) for index in range(6)]


def test_scan_that_kills_its_process_is_recorded(scans, tmp_path):
    """A header announces a volume that passes the checks but not a memory limit set on the command."""
    header = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 1500 1500 1500\n"
    header += (
        "space directions: (0.6,0,0) (0,0.6,0) (0,0,0.6)\nspace origin: (0,0,0)\nencoding: raw\nendian: little\n\n"
    )
    with (scans / "huge.nrrd").open("wb") as file:
        file.write(header.encode())
        file.truncate(len(header) + 2 * 1500**3)  # a file of zeros that takes no room
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (5 * 2**30,) * 2); "
    command = [sys.executable, "-c", limit + COMMAND[2], str(scans), str(tmp_path / "store"), "-np", "1"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1, done.stderr
    assert list(failures(tmp_path / "store")) == ["huge.nrrd"]
    assert Store.open(tmp_path / "store").ids == ["scan_0", "scan_1", "scan_2"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="hangs on a named pipe")
def test_scan_that_hangs_its_reader_is_recorded(scans, tmp_path):
    """A header whose voxels are in a pipe that nobody writes to: ITK waits for them for ever."""
    sitk.WriteImage(sitk.ReadImage(str(scans / "scan_0.nii.gz")), str(scans / "hangs.mhd"))
    (scans / "hangs.raw").unlink()
    os.mkfifo(scans / "hangs.raw")
    code, output = run(scans, tmp_path / "store", "-np", 2, "--scan-minutes", 0.3)
    assert code == 1 and "hangs.mhd: took longer than 0.3 minutes" in output
    reasons = failures(tmp_path / "store")
    assert list(reasons) == ["hangs.mhd"] and "raise --scan-minutes" in reasons["hangs.mhd"]
    assert Store.open(tmp_path / "store").ids == ["scan_0", "scan_1", "scan_2"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the worker is looked up in /proc")
def test_a_reader_that_stands_still_costs_its_scan_alone(scans, tmp_path, make_body):
    """Stopped by SIGSTOP, as by a file server that does not answer: it is killed when its time is over."""
    sitk.WriteImage(make_body((100, 300, 300)), str(scans / "a.nii.gz"))
    process = start(scans, tmp_path / "store", "-np", 1, "--scan-minutes", 0.3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def reader() -> list[int]:
        running = [int(pid) for pid in children.read_text().split()]
        opened = {pid: [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()] for pid in running}
        return [pid for pid, files in opened.items() if any("a.nii.gz" in file for file in files)]

    found = []

    def is_reading() -> bool:
        with suppress(OSError):
            found[:] = reader()
        return bool(found)

    wait_for(is_reading)
    os.kill(found[0], signal.SIGSTOP)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "a.nii.gz: took longer than 0.3 minutes" in output
    assert list(failures(tmp_path / "store")) == ["a.nii.gz"]
    assert Store.open(tmp_path / "store").ids == ["scan_0", "scan_1", "scan_2"]


@pytest.mark.parametrize("minutes", ["0", "-1", "long", "nan"])
def test_impossible_time_limit(scans, tmp_path, minutes):
    code, output = run(scans, tmp_path / "store", "--scan-minutes", minutes)
    assert code == 2 and "--scan-minutes" in output and "is not a number above 0" in output
