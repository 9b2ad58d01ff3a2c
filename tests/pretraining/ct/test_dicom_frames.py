"""Multi-frame CT: frames in any order, each with its own place, rescale and padding."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import ENHANCED_CT, enhanced_header, item, plain_header
from one_scan import read_only
from pydicom.uid import RLELossless

from pretraining.ct.find_scans import find_scans
from pretraining.ct.read_ct import read_ct
from pretraining.ct.scan import UnusableScanError

COUNT = 26
PREAMBLE_BYTES = 132
LEGACY_CT = "1.2.840.10008.5.1.4.1.1.2.2"
AXES = ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1])
ORDER = np.random.default_rng(0).permutation(COUNT)


@pytest.fixture
def stored(make_body) -> np.ndarray:
    return (sitk.GetArrayFromImage(make_body((COUNT, 30, 34))) + 1024).clip(0).astype("u2")


def save(dataset, path, compress=False):
    if compress:
        dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("sop_class", [ENHANCED_CT, LEGACY_CT])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_frames_are_sorted_by_their_places(tmp_path, stored, sop_class, is_compressed):
    dataset = enhanced_header(stored[ORDER], 2.5 * ORDER - 40)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    save(dataset, tmp_path / "a.dcm", is_compressed)
    image = read_only(tmp_path)
    np.testing.assert_array_equal(image.values, stored.astype(int) - 1024)
    assert image.spacing_xyz_mm == (1, 1, 2.5)
    np.testing.assert_array_equal(image.direction, np.eye(3))


def groups(index: int, **sequences) -> dict:
    """The functional groups of a frame: its place, and others."""
    return {"PlanePositionSequence": [item(ImagePositionPatient=[0, 0, float(index)])]} | sequences


def test_each_frame_has_its_own_rescale_and_padding(tmp_path, stored):
    intercepts = -1024 + 100 * (np.arange(COUNT) % 3)
    stored[:, :6, :6] = 65000

    def each(index: int) -> dict:
        scale = item(RescaleSlope=1, RescaleIntercept=int(intercepts[index]), RescaleType="HU")
        return groups(index, PixelValueTransformationSequence=[scale])

    save(enhanced_header(stored, np.arange(COUNT), each, PixelPaddingValue=65000), tmp_path / "a.dcm")
    values = read_only(tmp_path).values
    expected = stored.astype(int) + intercepts[:, None, None]
    expected[:, :6, :6] = -1024
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_frames_that_are_called_localizers_are_left_out(tmp_path, stored, is_compressed):
    def each(index: int) -> dict:
        kind = "LOCALIZER" if index in (0, COUNT - 1) else "AXIAL"
        return groups(10 * index if kind == "LOCALIZER" else index, CTImageFrameTypeSequence=[
            item(FrameType=["ORIGINAL", "PRIMARY", kind])
        ])  # fmt: skip

    save(enhanced_header(stored, np.arange(COUNT), each), tmp_path / "a.dcm", is_compressed)
    np.testing.assert_array_equal(read_only(tmp_path).values, stored[1:-1].astype(int) - 1024)


def test_compressed_frames_that_differ_in_rescale_are_refused(tmp_path, stored):
    def each(index: int) -> dict:
        scale = item(RescaleSlope=1, RescaleIntercept=-1024 + index % 2, RescaleType="HU")
        return groups(index, PixelValueTransformationSequence=[scale])

    save(enhanced_header(stored, np.arange(COUNT), each), tmp_path / "a.dcm", compress=True)
    with pytest.raises(UnusableScanError, match="compressed frames that differ in rescale"):
        read_only(tmp_path)


def with_contents(**values) -> dict:
    return {"FrameContentSequence": [item(**values)]}


@pytest.mark.parametrize(
    ("each", "reason"),
    [
        (lambda i: groups(i // 2, **with_contents(TemporalPositionIndex=i % 2 + 1)), "several passes"),
        (lambda i: groups(i, **with_contents(StackID=str(i % 2))), "several passes"),
        (lambda i: groups(i + (i > 9)), "slices are missing"),
        (lambda i: groups(i // 2), "missing or there twice"),
        (lambda i: {"PlanePositionSequence": [item(ImagePositionPatient=[0, 3 * (i % 2), i])]}, "shifted"),
        (lambda i: {"PlanePositionSequence": []}, "without position"),
        (lambda i: groups(i, PixelMeasuresSequence=[item(PixelSpacing=[1 + i % 2, 1])]), "differ in pixel spacing"),
        (lambda i: groups(i, PlaneOrientationSequence=[item(ImageOrientationPatient=AXES[i % 2])]), "in orientation"),
    ],
)
def test_frames_that_are_no_volume_are_refused_with_the_reason(tmp_path, stored, each, reason):
    save(enhanced_header(stored, np.arange(COUNT), each), tmp_path / "a.dcm")
    with pytest.raises(UnusableScanError, match=reason):
        read_only(tmp_path)


def test_stacks_that_continue_each_other_are_one_volume(tmp_path, stored):
    each = lambda i: groups(i, **with_contents(StackID=str(i // 13), FrameAcquisitionNumber=i // 5))  # noqa: E731
    save(enhanced_header(stored, np.arange(COUNT), each), tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_only(tmp_path).values, stored.astype(int) - 1024)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"InConcatenationTotalNumber": 2}, "one of 2 files of a concatenation"),
        ({"NumberOfFrames": COUNT - 1}, "claims 25 frames but describes 26"),
    ],
)
def test_parts_of_volumes_are_refused(tmp_path, stored, header, reason):
    dataset = enhanced_header(stored, np.arange(COUNT))
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    save(dataset, tmp_path / "a.dcm")
    with pytest.raises(UnusableScanError, match=reason):
        read_only(tmp_path)


def test_frames_without_places_are_refused(tmp_path, stored):
    """ITK takes them to be 1 mm apart."""
    save(plain_header(stored, NumberOfFrames=COUNT, RescaleSlope=1, RescaleIntercept=-1024), tmp_path / "a.dcm")
    with pytest.raises(UnusableScanError, match="26 frames without a position for each"):
        read_only(tmp_path)


def test_a_flipped_bit_in_the_header_is_named_or_does_no_harm(tmp_path, stored):
    save(enhanced_header(stored, np.arange(COUNT)), tmp_path / "a.dcm")
    plain = (tmp_path / "a.dcm").read_bytes()
    random = np.random.default_rng(0)
    read = 0
    for place in random.integers(PREAMBLE_BYTES, len(plain) - stored.nbytes, 60):
        changed = bytearray(plain)
        changed[place] ^= 1 << random.integers(8)
        (tmp_path / "a.dcm").write_bytes(changed)
        for scan in find_scans(tmp_path, tmp_path / "store")[0]:
            try:
                values = read_ct(scan).values
            except UnusableScanError:
                continue
            read += 1
            slope, intercept = np.polyfit(stored.ravel(), values.ravel(), 1)  # which can have changed
            np.testing.assert_allclose(values, stored * slope + intercept, atol=0.5)
    assert 20 < read < 60


def test_two_files_of_one_series_are_two_volumes(tmp_path, stored):
    for name in ("a", "b"):
        stored[5, 5, 5] += 1
        save(enhanced_header(stored, np.arange(COUNT)), tmp_path / f"{name}.dcm")
    scans, _ = find_scans(tmp_path, tmp_path / "store")
    assert len({scan.volume_id for scan in scans}) == 2
    assert [read_ct(scan).values[5, 5, 5] for scan in scans] in ([x := int(stored[5, 5, 5]) - 1024, x - 1], [x - 1, x])
