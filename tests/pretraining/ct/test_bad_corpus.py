"""`cads_preprocess` on an archive that nobody has looked through: over 200 bad files of all kinds among good ones.

None may stop the run, get into the store unnoticed, write outside of it, or take memory for what its header announces.
DICOM is in test_bad_dicom.py.
"""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import pretraining
from pretraining.ct.scan import is_text
from pretraining.store.store import read_manifest

COMMAND = "import sys; from pretraining.preprocess import main; sys.exit(main())"
TELL_PEAK = """
import atexit
def peak():  # VmHWM, since the highest resident size that getrusage gives of a process includes its parent's
    own = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
    print(max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
atexit.register(peak)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}
LIMIT_BYTES = 6 * 2**30
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".packed.nrrd", ".packed.mha")
PACKED = (".nii.gz", ".packed.nrrd", ".packed.mha")
HEADER_BYTES = 340  # more than those of our NRRD and MetaImage files
HOSTILE_NAMES = (
    "a b", "it's", 'a "quote"', "lungs 肺 🫁", "line\nbreak", "up..\\..\\up", "$(touch owned)", "; rm -rf x", "-np",
    "%s%n", "a" * 240, "tab\tbell\a", "e\u0301 and \u00e9", "\u202ertl", os.fsdecode(b"not utf-8 \xff"), "CON", "~",
)  # fmt: skip


def patched(content: bytes, offset: int, new: bytes) -> bytes:
    return content[:offset] + new + content[offset + len(new) :]


def damaged(plain: dict[str, bytes]) -> dict[str, bytes]:
    """Truncated files, and compressed ones with a bit flipped among the voxels."""
    files = {}
    for suffix, content in plain.items():
        for kept in (0, 1, 20, 100, 300, *(int(part * len(content)) for part in (0.3, 0.5, 0.7, 0.9, 0.99))):
            files[f"truncated_{kept}{suffix.replace('.', '_')}{suffix}"] = content[:kept]
    for suffix in PACKED:
        begin = 20 if suffix == ".nii.gz" else HEADER_BYTES
        files |= flipped(plain, suffix, begin, len(plain[suffix]))
    return files


def flipped(plain: dict[str, bytes], suffix: str, begin: int, end: int) -> dict[str, bytes]:
    """Copies of a file with one bit flipped, at 12 places between two offsets."""
    content = plain[suffix]
    return {
        f"flipped_{place}{suffix}": patched(content, place, bytes([content[place] ^ 16]))
        for place in np.random.default_rng(0).integers(begin, end, 12)
    }


def absurd_nifti(plain: bytes) -> dict[str, bytes]:
    """NIfTI headers with impossible numbers (offsets: the NIfTI-1 standard)."""
    files = {}
    for axis in (1, 2, 3):
        for spacing in (0.0, -1.0, np.nan, np.inf, -np.inf, 1e-6, 1e6, 3e38):
            files[f"pixdim{axis}_{spacing}.nii"] = patched(plain, 76 + 4 * axis, struct.pack("<f", spacing))
        for size in (0, -1, -32768, 32767):
            files[f"dim{axis}_{size}.nii"] = patched(plain, 40 + 2 * axis, struct.pack("<h", size))
    for count in (-1, 0, 1, 2, 8, 32767):
        files[f"dims_{count}.nii"] = patched(plain, 40, struct.pack("<h", count))
    for code in (0, 1, 32, 128, 1536, 9999, -4):
        files[f"type_{code}.nii"] = patched(plain, 70, struct.pack("<h", code))
    for offset in (0.0, -1e9, 1e30, np.nan, 3e9):
        files[f"offset_{offset}.nii"] = patched(plain, 108, struct.pack("<f", offset))
    for slope in (1e38, -1e38, 1e-38):
        files[f"slope_{slope}.nii"] = patched(plain, 112, struct.pack("<ff", slope, 0))
    huge = patched(plain, 42, struct.pack("<hhh", 32767, 32767, 32767))
    files["terabytes.nii"] = huge
    files["terabytes_packed.nii.gz"] = gzip.compress(huge)
    large = patched(plain, 42, struct.pack("<hhh", 1500, 1500, 1500))
    files["gigabytes.nii"] = patched(large, 80, struct.pack("<fff", 0.5, 0.5, 0.5))
    files["bomb.nii.gz"] = gzip.compress(plain + bytes(200 * 2**20), 1)
    files["magic.nii"] = patched(plain, 344, b"what")
    return files


def absurd_text_headers(plain: dict[str, bytes]) -> dict[str, bytes]:
    """NRRD and MetaImage headers with impossible lines."""
    lines = {
        ".mha": {
            b"DimSize = 44 36 30": [b"0 36 30", b"-1 36 30", b"9999999 9999999 9999999", b"2147483647 2 2", b"44 36",
                                    b"1e3 x y", b"60000 60000 1", b"", b"99999999999999999999 1 1"],
            b"ElementSpacing = 1 1 1": [b"0 1 1", b"-1 1 1", b"nan 1 1", b"inf 1 1", b"1e300 1 1", b"1e-300 1 1", b"1"],
            b"ElementType = MET_SHORT": [b"MET_OTHER", b"MET_DOUBLE", b""],
            b"NDims = 3": [b"0", b"-3", b"2", b"99", b"2147483647"],
            b"ElementDataFile = LOCAL": [b"../../../../etc/passwd", b"missing.raw", b"/dev/null", b"LIST", b"%d 1 9 1"],
            b"TransformMatrix = 1 0 0 0 1 0 0 0 1": [
                b"0 0 0 0 0 0 0 0 0", b"nan 0 0 0 1 0 0 0 1", b"1 1 0 0 1 0 0 0 1"],
        },
        ".nrrd": {
            b"sizes: 44 36 30": [
                b"0 36 30", b"-1 36 30", b"9999999 9999999 9999999", b"44 36", b"x y z", b"60000 60000 1"],
            b"space directions: (1,0,0) (0,1,0) (0,0,1)": [
                b"(0,0,0) (0,1,0) (0,0,1)", b"(nan,0,0) (0,1,0) (0,0,1)", b"(inf,0,0) (0,1,0) (0,0,1)",
                b"none none none", b"(1e300,0,0) (0,1,0) (0,0,1)", b"(1,0,0) (1,0,0) (0,0,1)"],
            b"type: short": [b"block", b"quaternion", b"double"],
            b"dimension: 3": [b"0", b"-1", b"4", b"17", b"2147483647"],
            b"encoding: raw": [b"bzip2", b"other"],
        },
    }  # fmt: skip
    files = {}
    for suffix, changes in lines.items():
        for line, values in changes.items():
            assert line in plain[suffix], line
            key, separator = line[: line.index(b" ") + 1], b"= " if suffix == ".mha" else b""
            if suffix == ".nrrd":
                key = line[: line.index(b": ") + 2]
            for index, value in enumerate(values):
                name = f"{line.split()[0].decode().strip(':')}_{index}{suffix}"
                files[name] = plain[suffix].replace(line, key + separator + value)
    return files


def not_ct(body: sitk.Image) -> dict[str, sitk.Image]:
    """Sound images that are no CT volume in HU."""
    real = sitk.Cast(body, sitk.sitkFloat32)
    images = {
        "flat": body[:, :, 9], "time": sitk.JoinSeries([body, body]), "colour": sitk.Compose([body] * 3),
        "localizer": body[:, :, :1], "three_slices": body[:, :, :3], "narrow": body[:20], "inverted": -body,
        "mr": sitk.Cast(sitk.RescaleIntensity(body, 0, 900), sitk.sitkUInt16),
        "picture": sitk.Cast(sitk.RescaleIntensity(body, 0, 255), sitk.sitkUInt8),
        "labels": sitk.Cast(body > 0, sitk.sitkUInt8), "shifted": body + 1200, "twice": body - 1900,
        "windowed": sitk.Clamp(body, body.GetPixelID(), -160, 240), "unit": real / 1000,
        "constant_air": body * 0 - 1024, "constant_water": body * 0, "constant_tissue": body * 0 + 40,
    }  # fmt: skip
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus_inf", -np.inf)):
        images[name] = sitk.Image(real)
        images[name][3, 4, 5] = value
    return images


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_body) -> tuple[Path, set[str], set[str], set[str]]:
    """A folder of bad scans among good ones, the names of the bad ones, the good ones, and those that may be either."""
    folder = tmp_path_factory.mktemp("corpus") / "archive"
    folder.mkdir()
    body = make_body()
    plain = {}
    for suffix in SUFFIXES:
        path = folder / f"good{suffix[1:].replace('.', '')}{suffix}"
        sitk.WriteImage(make_body(seed=len(plain)), str(path), useCompression=suffix in PACKED)
        plain[suffix] = path.read_bytes()
    good = {path.name for path in folder.iterdir()}
    bad = damaged(plain) | absurd_nifti(plain[".nii"]) | absurd_text_headers(plain)
    # What a flipped bit makes of a number in a text header can be as sound as what it was.
    either = {
        name: text for suffix in PACKED[1:] for name, text in flipped(plain, suffix, 0, HEADER_BYTES - 40).items()
    }
    for index, name in enumerate(HOSTILE_NAMES):
        content = patched(plain[".nii"], len(plain[".nii"]) - 2, struct.pack("<h", index))  # or it would be a double
        if is_text(name):
            good.add(f"{name}.nii")
            (folder / f"{name}.nii").write_bytes(content)
        else:
            bad[f"{name}.nii"] = content
        bad[f"bad {name[:200]}.nii.gz"] = plain[".nii.gz"][: 1000 + index]
    for name, content in (bad | either).items():
        (folder / name).write_bytes(content)
    for name, image in not_ct(body).items():
        for suffix in (".nii.gz", ".nrrd", ".mha"):
            file = f"{name}_{suffix[1:3]}{suffix}"
            bad[file] = b""
            sitk.WriteImage(image, str(folder / file))
    make_odd_files(folder)
    bad |= dict.fromkeys(("itself.nii", "nowhere.nii.gz", "pipe.nii", "zeros.nii.gz", "twin.nii", "twin.nrrd"), b"")
    (folder / "the same as goodnii.nii").write_bytes(plain[".nii"])
    bad["the same as goodnii.nii"] = b""
    return folder, set(bad), good, set(either)


def make_odd_files(folder: Path) -> None:
    """Links in loops and to nothing, a pipe, an endless device, two scans of one name."""
    (folder / "itself.nii").symlink_to(folder / "itself.nii")
    (folder / "nowhere.nii.gz").symlink_to(folder / "no such file")
    (folder / "zeros.nii.gz").symlink_to("/dev/zero")
    (folder / "endless").symlink_to("/dev/zero")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.nii")
    os.mkfifo(folder / "pipe without suffix")
    for suffix in (".nii", ".nrrd"):
        (folder / f"twin{suffix}").write_bytes((folder / f"good{suffix[1:]}{suffix}").read_bytes())


def contents(folder: Path) -> dict[Path, tuple]:
    return {
        path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*") if path.name != "store"
    }


def test_bad_scans_are_named_and_good_ones_get_in(corpus):
    archive, bad, good, either = corpus
    assert (len(bad), len(good), len(either)) == (297, 22, 24)  # docs/reliability.md says so
    before, store = contents(archive.parent), archive.parent / "store"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({LIMIT_BYTES},) * 2); "
    command = [sys.executable, "-c", limit + TELL_PEAK + COMMAND, str(archive), str(store), "-np", "2"]
    # errors="replace": names of files need not be valid text
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, encoding="utf-8", errors="replace", timeout=500
    )
    assert done.returncode == 1, done.stderr
    failed = {entry["file"]: entry["reason"] for entry in json.loads((store / "failed.json").read_text())}
    assert failed.keys() - either == bad
    unexplained = {name: reason for name, reason in failed.items() if "please report" in reason or "\n" in reason}
    assert not unexplained
    assert not {name: reason for name, reason in failed.items() if "want of memory" in reason}
    assert "same voxels as volume 'goodnii'" in failed["the same as goodnii.nii"]
    sources = {entry["source"]["path"] for entry in read_manifest(store)["volumes"].values()}
    assert sources == good | (either - failed.keys())
    assert {path: value for path, value in contents(archive.parent).items() if store not in path.parents} == before
    assert all(path.resolve().is_relative_to(store) for path in store.rglob("*"))
    assert "Traceback" not in done.stderr
    assert not [
        line for line in done.stderr.splitlines() if line.startswith("break")
    ]  # a name makes no line of its own
    assert int(done.stdout.split()[-1]) * 1024 < 2**30
