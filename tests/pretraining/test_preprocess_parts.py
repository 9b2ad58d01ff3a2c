"""`cads_preprocess -num_parts N -part_id I` on real files: at the same time, one by one, stopped, with bad scans."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import SimpleITK as sitk

import pretraining
from pretraining.store.store import Store, read_manifest
from pretraining.system.errors import UserError
from pretraining.system.files import atomic_path

COMMAND = [sys.executable, "-c", "import sys; from pretraining.preprocess import main; sys.exit(main())"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}


def start(*arguments) -> subprocess.Popen:
    command = [*COMMAND, *map(str, arguments), "-np", "1"]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )


def run(*arguments) -> tuple[int, str]:
    process = start(*arguments)
    output, _ = process.communicate(timeout=300)
    assert "Traceback" not in output, output
    return process.returncode, output


def part(number: int, count: int) -> tuple:
    return "-num_parts", count, "-part_id", number


def failures(store: Path) -> list[str]:
    return [entry["file"] for entry in json.loads((store / "failed.json").read_text())]


@pytest.fixture
def scans(tmp_path, make_body):
    """Six scans whose sorted names the parts take in turn: good, good, broken, good, and two of one name."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for index, name in enumerate(("a.nii.gz", "b.nii.gz", "d.mha", "twice.nii", "twice.nrrd")):
        sitk.WriteImage(make_body(seed=index), str(folder / name))
    content = (folder / "a.nii.gz").read_bytes()
    (folder / "c.nii.gz").write_bytes(content[: len(content) // 2])
    return folder


def test_parts_at_the_same_time_make_the_store_of_one_process(scans, tmp_path):
    one, parts = tmp_path / "one", tmp_path / "parts"
    assert run(scans, one)[0] == 1
    processes = [start(scans, parts, *part(number, 2)) for number in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    assert read_manifest(parts) == read_manifest(one)
    assert Store.open(parts).ids == ["a", "b", "d"]
    assert Store.open(parts).fingerprint() == Store.open(one).fingerprint()
    for name in ("failed.json", "radiographs.png"):
        assert (parts / name).read_bytes() == (one / name).read_bytes()
    assert failures(parts) == ["c.nii.gz", "twice.nii", "twice.nrrd"]
    assert not list(parts.rglob(".*.tmp"))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_scans_with_the_same_voxels_the_first_by_name_gets_in_whichever_part_ends_last(tmp_path, make_body, order):
    (tmp_path / "scans").mkdir()
    for name, seed in (("a.nii", 1), ("b.nii", 0), ("c.nii", 2), ("d.mha", 0)):  # b and d are both part 1's
        sitk.WriteImage(make_body(seed=seed), str(tmp_path / "scans" / name))
    sitk.WriteImage(make_body(seed=1), str(tmp_path / "scans" / "e.mha"))  # as a, both part 0's
    sitk.WriteImage(make_body(seed=2), str(tmp_path / "scans" / "f.mha"))  # as c, of the other part
    store = tmp_path / "store"
    codes = [run(tmp_path / "scans", store, *part(number, 2))[0] for number in order]
    assert codes == [0, 1]  # known once the store is complete
    assert Store.open(store).ids == ["a", "b", "c"] and failures(store) == ["d.mha", "e.mha", "f.mha"]
    code, _ = run(tmp_path / "scans", store)
    assert code == 1 and Store.open(store).ids == ["a", "b", "c"] and failures(store) == ["d.mha", "e.mha", "f.mha"]
    assert run(tmp_path / "scans", tmp_path / "one")[0] == 1
    assert read_manifest(tmp_path / "one") == read_manifest(store)
    assert (tmp_path / "one" / "failed.json").read_bytes() == (store / "failed.json").read_bytes()


def test_parts_one_by_one_in_any_order(scans, tmp_path):
    store = tmp_path / "store"
    for number, code in ((6, 0), (3, 0), (5, 1), (0, 0), (2, 1), (4, 1)):
        assert run(scans, store, *part(number, 7))[0] == code
        with pytest.raises(UserError, match="not finished"):
            Store.open(store)
    code, output = run(scans, store, *part(1, 7))
    assert code == 0 and f"volumes in {store}: 3;" in output and "could not be used: 3" in output
    assert Store.open(store).ids == ["a", "b", "d"]
    assert failures(store) == ["c.nii.gz", "twice.nii", "twice.nrrd"]


def test_a_part_run_again_tries_its_failures_and_leaves_the_rest_alone(scans, tmp_path, make_body):
    store = tmp_path / "store"
    assert run(scans, store, *part(0, 2))[0] == 1
    assert run(scans, store, *part(1, 2))[0] == 1
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/*") if path.parent.name != "failed"}
    sitk.WriteImage(make_body(seed=7), str(scans / "c.nii.gz"))
    code, output = run(scans, store, *part(0, 2))
    assert code == 1, output  # twice.nii is part 0's as well
    assert failures(store) == ["twice.nii", "twice.nrrd"]
    assert Store.open(store).ids == ["a", "b", "c", "d"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_scans_of_one_name_are_refused_also_where_one_part_came_first(scans, tmp_path, make_body):
    """The names are judged over all scans: neither part may take its own of the two as the only one."""
    store = tmp_path / "store"
    for number in (1, 0):
        run(scans, store, *part(number, 2))
        assert not (store / "volumes" / "twice.json").exists()


def test_a_killed_part_is_made_up_for_by_running_it_again(tmp_path, make_body):
    source, store = tmp_path / "scans", tmp_path / "store"
    source.mkdir()
    for index in range(8):
        sitk.WriteImage(make_body((60, 120, 120), (1.0, 1.2, 1.3), seed=index), str(source / f"{index}.nii"))
    process = start(source, store, *part(0, 2))
    end = time.monotonic() + 60
    while not list(store.glob("volumes/*.json")):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    code, output = run(source, store, *part(1, 2))
    assert code == 0 and "scans left to other parts: " in output
    with pytest.raises(UserError, match="not finished"):
        Store.open(store)
    assert run(source, store, *part(0, 2))[0] == 0
    assert len(Store.open(store)) == 8
    assert not list(store.rglob(".*.tmp"))


def test_a_part_leaves_the_temporary_files_of_others(scans, tmp_path):
    store = tmp_path / "store"
    run(scans, store, *part(0, 2))
    mine, other = (store / "volumes" / f".{name}.b2nd.0123abcd.tmp" for name in ("a", "b"))
    listing = store / ".manifest.json.0123abcd.tmp"
    for file in (mine, other, listing):
        file.write_bytes(b"being written")
    run(scans, store, *part(0, 2))
    assert not mine.exists() and other.exists() and listing.exists()
    run(scans, store)
    assert not other.exists() and not listing.exists()


def test_one_file_written_twice_at_once(tmp_path):
    with atomic_path(tmp_path / "file") as first, atomic_path(tmp_path / "file") as second:
        first.write_text("one")
        second.write_text("two")
    assert (tmp_path / "file").read_text() == "one"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_no_scan_of_any_part_can_be_used(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in "abc":
        (tmp_path / "scans" / f"{name}.nii.gz").write_text("nothing")
    assert run(tmp_path / "scans", tmp_path / "store", *part(0, 2))[0] == 1
    code, output = run(tmp_path / "scans", tmp_path / "store", *part(1, 2))
    assert code == 2 and "no scan could be used: a.nii.gz (and 2 more)" in output


@pytest.fixture
def as_node():
    """Makes a command see a host name of its own, as a node of a cluster."""
    if subprocess.run(["unshare", "-u", "hostname", "trial"], capture_output=True).returncode:
        pytest.skip("host names of a test's own need root and unshare")
    return lambda name, words: ["unshare", "-u", "sh", "-c", f'hostname {name} && exec "$@"', "sh", *words]


def test_two_nodes_on_one_part(tmp_path, make_body, as_node):
    """While one does the part, the other is refused with the name of the first."""
    source, store = tmp_path / "scans", tmp_path / "store"
    source.mkdir()
    for index in range(8):
        sitk.WriteImage(make_body((60, 120, 120), (1.0, 1.2, 1.3), seed=index), str(source / f"{index}.nii"))
    for name in ("hangs_1", "hangs_2"):  # one for each part; each waits for voxels from a pipe
        sitk.WriteImage(sitk.ReadImage(str(source / "0.nii")), str(source / f"{name}.mhd"))
        (source / f"{name}.raw").unlink()
        os.mkfifo(source / f"{name}.raw")
    words = [*COMMAND, str(source), str(store), "-np", "1", *map(str, part(0, 2))]
    options = {"env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    first = subprocess.Popen(as_node("node-1", words), **options)
    while not list(store.glob("volumes/*.json")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    second = subprocess.run(as_node("node-2", words), timeout=300, **options)
    first.terminate()
    output, _ = first.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (143, 2), (output, second.stdout)
    assert f"is being written to by process {first.pid} on node-1" in second.stdout
    for file in source.glob("hangs*"):
        file.unlink()
    assert run(source, store, *part(0, 2))[0] == 0
    assert run(source, store, *part(1, 2))[0] == 0
    assert len(Store.open(store)) == 8 and not list(store.rglob(".*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-num_parts", 2), "-num_parts 2: needs -part_id as well"),
        (("-num_parts", 2, "-part_id", 2), "-part_id 2: must be from 0 to 1"),
        (("-num_parts", 2, "-part_id", -1), "-part_id -1: must be from 0 to 1"),
        (("-part_id", 1), "-part_id 1: needs -num_parts as well"),
        (("-num_parts", 0, "-part_id", 0), "0 is not a whole number of at least 1"),
        (("-num_parts", 2, "-part_id", "first"), "first"),
    ],
)
def test_impossible_parts(scans, tmp_path, arguments, reason):
    code, output = run(scans, tmp_path / "store", *arguments)
    assert code == 2 and reason in output
    assert not (tmp_path / "store").exists()
