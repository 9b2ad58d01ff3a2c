"""Property-based: whatever stands in an image header, a manifest or an entry, readers refuse it in words or use it."""

import gzip
import json
import shutil
import struct
import tracemalloc

import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pretraining.ct.checks import check_stated_spacing
from pretraining.ct.find_scans import find_scans
from pretraining.ct.nrrd_mha import read_header, stated_spacing
from pretraining.ct.read_ct import CTImage, read_ct
from pretraining.ct.scan import Scan, UnusableScanError
from pretraining.store.failures import Failures
from pretraining.store.store import Store
from pretraining.store.writer import StoreWriter
from pretraining.system.errors import UserError
from pretraining.system.worker_pool import WorkerDiedError, run_in_processes

HEADER_BYTES = 352
slow = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

edits = st.lists(st.tuples(st.integers(0, HEADER_BYTES - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)
numbers = st.sampled_from([b"0", b"-1", b"nan", b"inf", b"1e308", b"-0.0", b"99999999999", b"(", b"none", b"", b"\xff"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory, make_body):
    """A small image in three formats, by suffix."""
    folder = tmp_path_factory.mktemp("written")
    files = {suffix: folder / f"a{suffix}" for suffix in (".nii", ".nrrd", ".mha")}
    for file in files.values():
        sitk.WriteImage(make_body((24, 26, 28)), str(file))
    return {suffix: file.read_bytes() for suffix, file in files.items()}


def test_headers_of_all_kinds_of_bytes(written, tmp_path):
    """300 mutated files, read in a process of their own, since ITK crashes on some: that, too, is told apart."""
    scans = []

    def add(suffix, content):
        path = tmp_path / f"{len(scans)}{suffix}"
        path.write_bytes(content)
        scans.append(Scan(path.stem, path.name, (path,)))

    @settings(max_examples=150)
    @given(st.sampled_from(sorted(written)), edits, st.none() | st.integers(0, 2000))
    def bytes_anywhere(suffix, changes, kept):
        content = bytearray(written[suffix])
        for offset, new in changes:
            content[offset : offset + len(new)] = new
        add(suffix, bytes(content[:kept]))

    @settings(max_examples=150)
    @given(st.sampled_from([".nrrd", ".mha"]), st.integers(0, 100), numbers)
    def numbers_in_text(suffix, word, new):
        header, mark, voxels = written[suffix].partition(b"(0,0,0)\n\n" if suffix == ".nrrd" else b"LOCAL\n")
        words = header.split(b" ")
        words[word % len(words)] = new
        add(suffix, b" ".join(words) + mark + voxels)

    bytes_anywhere()
    numbers_in_text()
    outcomes = {"read": 0, "refused": 0, "crashed": 0}
    for scan, outcome in run_in_processes(read_ct, scans, 1):
        crashed = isinstance(outcome, WorkerDiedError) and outcome.crashed
        assert isinstance(outcome, CTImage | UnusableScanError) or crashed, (scan.name, outcome)
        outcomes["read" if isinstance(outcome, CTImage) else "crashed" if crashed else "refused"] += 1
    assert outcomes["refused"] > 50 and outcomes["read"] > 20 and outcomes["crashed"] < 20, outcomes


def test_dicom_headers_of_all_kinds_of_bytes(make_body, tmp_path):
    """150 mutated slices, each of a series of its own, beside a whole one: each is found or refused."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    body = make_body((3, 8, 9))
    for index in range(3):
        piece = body[:, :, index : index + 1]
        header = {
            "0020|000e": "1.2.4000",
            "0008|0060": "CT",
            "0020|0032": f"0\\0\\{index}",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in (header | {"0020|0037": "1\\0\\0\\0\\1\\0"}).items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(tmp_path / f"whole_{index}.dcm"))
        writer.Execute(piece)
    plain = (tmp_path / "whole_1.dcm").read_bytes()
    names = []

    @settings(max_examples=150)
    @given(
        st.lists(
            st.tuples(st.integers(128, len(plain) - 145), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3
        )
    )
    def bytes_anywhere(changes):
        content = bytearray(plain.replace(b"1.2.4000", b"1.2.4%03d" % (len(names) + 1)))
        for offset, new in changes:
            content[offset : offset + len(new)] = new
        names.append(f"changed_{len(names)}.dcm")
        (tmp_path / names[-1]).write_bytes(content)

    bytes_anywhere()
    scans, unusable = find_scans(tmp_path, tmp_path / "store")
    assert [path.name for scan in scans for path in scan.files if path.name.startswith("whole")] == [
        f"whole_{index}.dcm" for index in range(3)
    ]
    assert sorted([*unusable, *(path.name for scan in scans for path in scan.files)]) == sorted(
        [*names, *(f"whole_{index}.dcm" for index in range(3))]
    )
    assert len(unusable) > 10 and len(scans) > 10
    assert not [reason for reason in unusable.values() if "please report" in reason]
    for scan, outcome in run_in_processes(read_ct, scans, 1):
        crashed = isinstance(outcome, WorkerDiedError) and outcome.crashed
        assert isinstance(outcome, CTImage | UnusableScanError) or crashed, (scan.name, outcome)


@slow
@given(content=st.binary(max_size=400), spacing=st.tuples(*[st.floats(0.1, 10)] * 3))
@example(content=b"NRRD0004\nspace directions: (1e308,1e308,0) (nan,0,0) (0,0,1)\n\n", spacing=(1.0, 1.0, 1.0))
@pytest.mark.parametrize("suffix", [".nrrd", ".mhd"])
def test_text_headers_of_any_bytes(tmp_path, suffix, content, spacing):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnusableScanError):
        check_stated_spacing(stated_spacing(read_header(path)), spacing)


@pytest.mark.parametrize(("suffix", "line"), [(".nrrd", b"space directions"), (".mha", b"ElementSpacing")])
def test_an_image_without_a_spacing_is_refused(written, tmp_path, suffix, line):
    lines = written[suffix].split(b"\n")
    (tmp_path / f"a{suffix}").write_bytes(b"\n".join(each for each in lines if not each.startswith(line)))
    with pytest.raises(UnusableScanError, match="states no voxel spacing"):
        read_ct(Scan("a", "a", (tmp_path / f"a{suffix}",)))


@pytest.fixture
def store_copy(small_store, tmp_path):
    return shutil.copytree(small_store, tmp_path / "store")


def replaced(content, path, value):
    """The content with the value at one place: ``path`` picks a member on each level."""
    if not path or not isinstance(content, dict | list) or not content:
        return value
    if isinstance(content, list):
        index = path[0] % len(content)
        return [*content[:index], replaced(content[index], path[1:], value), *content[index + 1 :]]
    key = sorted(content)[path[0] % len(content)]
    return {**content, key: replaced(content[key], path[1:], value)}


@slow
@given(path=st.lists(st.integers(0, 20), max_size=5), value=json_values)
def test_a_manifest_of_any_values(small_store, store_copy, path, value):
    manifest = json.loads((small_store / "manifest.json").read_text())
    (store_copy / "manifest.json").write_text(json.dumps(replaced(manifest, path, value)))
    try:
        store = Store.open(store_copy)
    except UserError as error:
        assert str(store_copy) in str(error)
    else:
        assert all(len(store.shape(name)) == 3 for name in store.ids)


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc/passwd", ".hidden", "", "a\\b"])
def test_a_manifest_does_not_lead_out_of_its_store(small_store, store_copy, name):
    manifest = json.loads((small_store / "manifest.json").read_text())
    manifest["volumes"][name] = manifest["volumes"].pop("wide")
    (store_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="damaged"):
        Store.open(store_copy)


@slow
@given(path=st.lists(st.integers(0, 20), max_size=3), value=json_values)
def test_an_entry_of_any_values_counts_or_does_not(store_copy, path, value):
    file = store_copy / "volumes" / "small.json"
    entry = json.loads((store_copy / "volumes" / "middle.json").read_text())
    file.write_text(json.dumps(replaced(entry, path, value)))
    finished = StoreWriter(store_copy).finished()
    assert {"middle", "wide"} <= finished.keys()
    if "small" in finished:
        source = finished["small"]["source"]
        assert isinstance(source["path"], str) and isinstance(source["size_bytes"], int)


@slow
@given(value=json_values)
def test_a_record_of_a_failure_of_any_values(tmp_path, value):
    (tmp_path / "failed").mkdir(exist_ok=True)
    (tmp_path / "failed" / "0.json").write_text(json.dumps(value))
    Failures(tmp_path).record("other", "reason")
    assert Failures(tmp_path).read()["other"] == "reason"


def test_a_packed_nifti_is_not_unpacked_beyond_its_announcement(written, tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(written[".nii"] + bytes(300 * 2**20), 1))
    tracemalloc.start()
    with pytest.raises(UnusableScanError, match="damaged"):
        read_ct(Scan("a", "a", (path,)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20


def test_a_spacing_in_nifti_needs_its_magic(written, tmp_path):
    content = bytearray(written[".nii"])
    content[344:348] = struct.pack("4s", b"ni1")
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(UnusableScanError):
        read_ct(Scan("a", "a", (tmp_path / "a.nii",)))
