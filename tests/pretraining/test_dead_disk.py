"""`cads_preprocess` on disks that fail: file systems whose blocks are gone, or that are shut down as by a dead disk.

As root, with a loop device; skipped otherwise.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

import pretraining
from pretraining.store.store import Store

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}
COMMAND = [sys.executable, "-c", "import sys; from pretraining.preprocess import main; sys.exit(main())"]
SHUT_DOWN = """
import fcntl, os, struct, sys, time
while len(sys.argv) > 2 and not os.path.exists(sys.argv[2]): time.sleep(0.01)
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack("I", 2))  # EXT4_IOC_SHUTDOWN
"""
EIO = os.strerror(errno.EIO)


def make_disk(image: Path, content: Path | None = None) -> Path:
    """An ext4 file system in a file, with the files of a folder."""
    with image.open("wb") as file:
        file.truncate(16 << 20)
    filled = ["-d", str(content)] if content else []
    if subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", *filled, image], capture_output=True).returncode:
        pytest.skip("makes a disk with mkfs.ext4")
    return image


def on_disk(image: Path, where: Path, before: str, *arguments) -> tuple[int, str]:
    """Run the command with a disk at a folder, after some shell commands; no other process sees the disk."""
    where.mkdir(exist_ok=True)
    mounted = f'mount -o loop "$0" "$1" || exit 77; where=$1; shift; {before}; "$@"'
    words = ["unshare", "-m", "sh", "-c", mounted, image, where, *COMMAND, *arguments, "-np", "1"]
    done = subprocess.run(list(map(str, words)), env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=150)
    if done.returncode == 77:
        pytest.skip("needs a loop device")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def failures(store: Path) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in json.loads((store / "failed.json").read_text())}


def error_of(messages: str) -> str:
    (sentence,) = [line for line in messages.splitlines() if line.startswith("error: ")]
    return sentence


@pytest.fixture
def scans(with_mount, tmp_path, make_body):
    """Six scans, of three formats that are read in different ways."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for index, name in enumerate(("a.nii", "b.mha", "c.nrrd", "d.nii.gz", "e.nii", "f.nii")):
        sitk.WriteImage(make_body(seed=index), str(folder / name))
    return folder


@pytest.mark.parametrize("name", ["a.nii", "b.mha", "c.nrrd", "d.nii.gz"])
def test_a_bad_place_costs_one_scan_and_is_called_so(scans, tmp_path, name):
    content = (scans / name).read_bytes()
    (scans / name).unlink()
    (scans / name).write_bytes(content)
    others = [file for file in scans.iterdir() if file.name != name][:2]
    for file in set(scans.iterdir()) - {scans / name, *others}:
        file.unlink()
    image = make_disk(tmp_path / "disk", scans)
    whole = image.read_bytes()
    place = whole.find(content[:4096])
    assert place > 0 and all(whole.find(file.read_bytes()[:4096]) > 0 for file in others)
    # what lies behind the beginning of the scan is gone: other files lie before it, or are read before it goes
    keep = " ".join(f'"$where/{file.name}"' for file in others)
    before = f'cat {keep} > /dev/null; truncate -s {place + 4096} "{image}"'
    code, _ = on_disk(image, tmp_path / "mounted", before, tmp_path / "mounted", tmp_path / "store")
    assert code == 1
    assert failures(tmp_path / "store") == {
        name: f"cannot be read: {EIO}; the disk or file server fails; check it and start again"
    }
    assert Store.open(tmp_path / "store").ids == sorted(file.name.split(".")[0] for file in others)
    code, _ = on_disk(make_disk(image, scans), tmp_path / "mounted", ":", tmp_path / "mounted", tmp_path / "store")
    assert code == 0 and len(Store.open(tmp_path / "store")) == 3


def test_a_dead_disk_of_scans_ends_the_command(scans, tmp_path):
    image, where, store = make_disk(tmp_path / "disk", scans), tmp_path / "mounted", tmp_path / "store"
    dead = f"{sys.executable} -c '{SHUT_DOWN}' \"$where\""
    code, messages = on_disk(image, where, dead, where, store)
    assert code == 2 and "the last 5 scans could not be read" in error_of(messages) and EIO in error_of(messages)
    code, messages = on_disk(image, where, ":", where, store)
    assert code == 0, messages
    assert len(Store.open(store)) == 6 and not failures(store)


def test_a_store_whose_disk_dies_ends_the_command_and_what_was_finished_stays(scans, tmp_path):
    image, where, after = make_disk(tmp_path / "disk"), tmp_path / "mounted", tmp_path / "after"
    store = where / "store"
    dies = f'{sys.executable} -c \'{SHUT_DOWN}\' "$where" "$where/store/volumes/a.json" &'
    code, messages = on_disk(image, where, dies + " true", scans, store)
    assert code == 2 and str(store) in error_of(messages) and EIO in error_of(messages)
    # the lock was not flushed, so nobody can be named: it is removed, as the refusal advises (docs/reliability.md)
    kept = f'cp -a "$where/store" "{after}"; rm -f "$where"/store/.preprocess.lock'
    code, messages = on_disk(image, where, kept, scans, store)
    assert code == 0, messages
    for name in ("a.json", "a.b2nd"):
        assert (after / "volumes" / name).stat().st_size > 0
    code, messages = on_disk(image, where, f'cp -a "$where/store" "{tmp_path / "end"}"', scans, store)
    assert code == 0 and len(Store.open(tmp_path / "end")) == 6
