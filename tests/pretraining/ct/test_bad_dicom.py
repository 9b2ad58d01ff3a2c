"""`cads_preprocess` on damaged DICOM: each bad series is named, none stops the run, and good slices are all found."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import pretraining
from pretraining.store.store import Store, read_manifest

COMMAND = "import sys; from pretraining.preprocess import main; sys.exit(main())"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}
LIMIT = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({6 * 2**30},) * 2); "
SHAPE = (26, 24, 24)
MIDDLE = 13
HEADER_FLIPS, VOXEL_FLIPS = 40, 6

Change = Callable[[int, bytes], bytes | None]
"""What to make of the slice with this index; None leaves it out."""


def write_series(folder: Path, body: sitk.Image, modality: str = "CT") -> None:
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    for index in range(body.GetDepth()):
        piece = body[:, :, index : index + 1]
        tags = {"0008|0060": modality, "0020|000d": "1.2.3", "0020|000e": "1.2.4", "0020|0013": str(index),
                "0008|0018": f"1.2.5.{index + 1}", "0020|0032": f"0\\0\\{index}", "0020|0037": "1\\0\\0\\0\\1\\0",
                "0028|1052": "-1024", "0028|1053": "1"}  # fmt: skip
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index:03d}.dcm"))
        writer.Execute(piece)


def value(tag: bytes, new: bytes, where: range = range(SHAPE[0])) -> Change:
    """Another value of the same length, for the element with this tag (implicit little endian) of some slices."""

    def change(index: int, content: bytes) -> bytes:
        place = content.index(tag) + 8
        length = int.from_bytes(content[place - 4 : place], "little")
        return content[:place] + new.ljust(length)[:length] + content[place + length :] if index in where else content

    return change


def bad_series() -> dict[str, Change]:
    """What to do to the slices of a series, by the name of its folder."""
    short, one = struct.Struct("<H").pack, range(MIDDLE, MIDDLE + 1)
    rows, columns, bits, samples = (
        b"\x28\0" + element + b"\x02\0\0\0" for element in (b"\x10\0", b"\x11\0", b"\0\1", b"\2\0")
    )
    spacing, position, orientation = b"\x28\0\x30\0", b"\x20\0\x32\0", b"\x20\0\x37\0"
    series = {f"rows_{n}": value(rows, short(n)) for n in (0, 1, 65535)}
    series |= {f"columns_{n}": value(columns, short(n)) for n in (0, 65535)}
    series |= {f"bits_{n}": value(bits, short(n)) for n in (0, 1, 8, 64)}
    series |= {f"samples_{n}": value(samples, short(n)) for n in (0, 255)}
    series |= {f"samples_{n}_once": value(samples, short(n), one) for n in (0, 255)}
    for index, text in enumerate((b"0\\0", b"-1\\1", b"nan", b"9e9", b"1e-9", b"1\\x", b"")):
        series |= {f"spacing_{index}": value(spacing, text), f"spacing_{index}_once": value(spacing, text, one)}
    for index, text in enumerate((b"0\\0\\5", b"0\\0\\nan", b"0\\0\\inf", b"0\\0\\9e9", b"x", b"")):
        series |= {f"position_{index}": value(position, text), f"position_{index}_once": value(position, text, one)}
    for index, text in enumerate(
        (b"0\\0\\0\\0\\0\\0", b"nan\\0\\0\\0\\1\\0", b"9\\0\\0\\0\\1\\0", b"0\\1\\0\\1\\0\\0")
    ):
        series[f"orientation_{index}_once"] = value(orientation, text, one)
    series |= {f"orientation_{n}": value(orientation, text) for n, text in enumerate((b"0\\0\\0\\0\\0\\0", b"x", b""))}
    series |= {f"cut_{n}": lambda i, c, n=n: c[:n] if i < 3 else None for n in (0, 100, 140, 400, 700)}
    series |= {f"cut_{n}_once": lambda i, c, n=n: c[:n] if i == MIDDLE else c for n in (0, 140, 400, 700, 1500)}
    series["missing"] = lambda i, c: None if i in (9, 10) else c
    series["single"] = lambda i, c: c if i == 0 else None
    series["text"] = lambda i, c: b"this is no DICOM file" if i < 3 else None
    return series


def flips(header_bytes: int, voxel_bytes: int) -> dict[str, Change]:
    """One bit flipped in the middle slice: in the header, or among the voxels."""
    random = np.random.default_rng(0)
    places = {f"flipped_header_{n}": random.integers(128, header_bytes) for n in range(HEADER_FLIPS)}
    places |= {f"flipped_voxel_{n}": header_bytes + random.integers(voxel_bytes) for n in range(VOXEL_FLIPS)}

    def flip(place: int, bit: int) -> Change:
        return lambda i, c: c if i != MIDDLE else c[:place] + bytes([c[place] ^ 1 << bit]) + c[place + 1 :]

    return {name: flip(place, random.integers(8)) for name, place in places.items()}


@pytest.fixture
def body(make_body) -> sitk.Image:
    return make_body(SHAPE)


@pytest.fixture
def archive(tmp_path, body) -> Path:
    """The folder `a whole one`, which comes first, and copies of it with changes."""
    folder = tmp_path / "archive"
    folder.mkdir()
    write_series(folder / "a whole one", body)
    plain = [path.read_bytes() for path in sorted((folder / "a whole one").iterdir())]
    voxel_bytes = 2 * SHAPE[1] * SHAPE[2]
    for name, change in (bad_series() | flips(len(plain[0]) - voxel_bytes, voxel_bytes)).items():
        (folder / name).mkdir()
        for index, content in enumerate(plain):
            changed = change(index, content)
            if changed is not None:
                (folder / name / f"{index:03d}.dcm").write_bytes(changed)
    write_series(folder / "magnetic", body, "MR")
    for suffix in ("", ".dcm"):
        os.mkfifo(folder / "a whole one" / f"pipe{suffix}")
        for name, target in (("itself", f"itself{suffix}"), ("nowhere", "no such file"), ("endless", "/dev/zero")):
            (folder / "a whole one" / f"{name}{suffix}").symlink_to(target)
    return folder


def test_damaged_series_are_named_and_the_good_one_is_whole(archive, body, tmp_path):
    store = tmp_path / "store"
    bad = {*bad_series(), "magnetic"}
    assert (len(bad), HEADER_FLIPS, VOXEL_FLIPS) == (60, 40, 6)  # docs/reliability.md says so
    command = [sys.executable, "-c", LIMIT + COMMAND, str(archive), str(store), "-np", "2"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    failed = {entry["file"]: entry["reason"] for entry in json.loads((store / "failed.json").read_text())}
    folders = {name.split("/")[0] for name in failed}
    assert not {name: reason for name, reason in failed.items() if "please report" in reason or "\n" in reason}
    assert {name for name in failed if name.startswith("a whole one/")} == {
        f"a whole one/{name}.dcm" for name in ("pipe", "itself", "nowhere", "endless")
    }
    stored = {entry["source"]["path"].split("/")[0]: name for name, entry in read_manifest(store)["volumes"].items()}
    assert bad <= folders and not bad & stored.keys()
    opened, expected = Store.open(store), np.maximum(sitk.GetArrayFromImage(body), -1024)
    np.testing.assert_array_equal(opened.volume(stored.pop("a whole one"))[:], expected)
    changed = {name: opened.volume(volume_id)[:] != expected for name, volume_id in stored.items()}
    assert all(name.startswith("flipped") and set(np.nonzero(where)[0]) == {MIDDLE} for name, where in changed.items())
    assert {path.name for path in archive.glob("flipped*")} <= folders | stored.keys()
