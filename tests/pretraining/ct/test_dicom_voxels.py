"""Values of DICOM slices: padding, sign, bits and rescale, each slice by its own header."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_slices
from one_scan import read_only
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.uid import RLELossless

from pretraining.ct.scan import UnusableScanError

COUNT = 30
PADDED = -1024


@pytest.fixture
def body_hu(make_body) -> np.ndarray:
    return sitk.GetArrayFromImage(make_body((COUNT, 36, 44))).astype(int)


@pytest.fixture
def outside(body_hu) -> np.ndarray:
    """What lies around a circle, as of a scanner that stores nothing there: a fifth of each slice."""
    _, rows, columns = body_hu.shape
    y, x = np.mgrid[:rows, :columns]
    return ((y - rows / 2 + 0.5) / rows) ** 2 + ((x - columns / 2 + 0.5) / columns) ** 2 > 0.25


def read_only_scan(folder) -> np.ndarray:
    return read_only(folder).values


@pytest.mark.parametrize(
    ("kind", "intercept", "stored_padding", "declared"),
    [
        ("i2", -1024, -2000, -2000),
        ("i2", 0, -3024, -3024),
        ("u2", -1024, 63536, 63536),
        ("u2", -1024, 63536, -2000),  # declared as a signed number
        ("i2", -1024, -2000, 63536),  # declared as an unsigned number
        ("u2", -1024, 65535, 65535),
        ("u2", -1024, 0, 0),
        ("i2", 0, 0, 0),  # the value of water
        ("i2", 0, 4095, 4095),
    ],
)
def test_declared_padding_is_air(tmp_path, body_hu, outside, kind, intercept, stored_padding, declared):
    stored = (body_hu - intercept).clip(0 if kind == "u2" else None).astype(kind)
    expected = stored.astype(int) + intercept
    stored[:, outside] = stored_padding
    header = {"PixelPaddingValue": padding_value(declared), "RescaleIntercept": intercept}
    write_slices(tmp_path, stored, np.arange(COUNT), **header)
    values = read_only_scan(tmp_path)
    assert values[:, outside].max() <= PADDED
    np.testing.assert_array_equal(values[:, ~outside], expected[:, ~outside])


@pytest.mark.parametrize("value", [-950, -1000])
def test_padding_with_the_value_of_lung_or_air_is_air(tmp_path, body_hu, outside, value):
    body_hu[:, outside] = value
    header = {"PixelPaddingValue": padding_value(value), "RescaleIntercept": 0}
    write_slices(tmp_path, body_hu.astype("i2"), np.arange(COUNT), **header)
    values = read_only_scan(tmp_path)
    assert (values[:, outside] == PADDED).all()
    is_tissue = body_hu > -900
    np.testing.assert_array_equal(values[is_tissue], body_hu[is_tissue])


def padding_value(declared: int) -> DataElement:
    """An element of whichever type holds the value; files have both for either kind of pixels."""
    return DataElement(0x00280120, "SS" if declared < 0 else "US", declared)


def test_padding_of_more_bits_than_are_stored(tmp_path, body_hu, outside):
    """GDCM would make +1072 HU of it."""
    stored = (body_hu + 1024).clip(0).astype("u2")
    stored[:, outside] = 63536
    header = {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": padding_value(-2000)}
    write_slices(tmp_path, stored, np.arange(COUNT), **header)
    values = read_only_scan(tmp_path)
    assert values[:, outside].max() <= PADDED
    np.testing.assert_array_equal(values[:, ~outside], stored[:, ~outside].astype(int) - 1024)


def test_bits_beyond_those_stored_that_nothing_declares(tmp_path, body_hu):
    """As overlays leave them, whose description was removed."""
    stored = (body_hu + 1024).clip(0).astype("u2")
    stored[:, ::7] |= 1 << 12
    write_slices(tmp_path, stored, np.arange(COUNT), BitsStored=12, HighBit=11)
    with pytest.raises(UnusableScanError, match="values beyond the 12 bits"):
        read_only_scan(tmp_path)


@pytest.mark.parametrize("kind", ["u2", "i2"])
@pytest.mark.parametrize(("bits", "high"), [(12, 15), (12, 13), (13, 15)])
def test_values_above_unused_bits(tmp_path, body_hu, kind, bits, high):
    """As some wrote them when the standard allowed it; GDCM takes the lowest bits."""
    intercept = -1024 if kind == "u2" else 0
    stored = (body_hu.clip(-1024, 2000) - intercept).astype(kind)
    written = stored << (high + 1 - bits)
    write_slices(tmp_path, written, np.arange(COUNT), BitsStored=bits, HighBit=high, RescaleIntercept=intercept)
    np.testing.assert_array_equal(read_only_scan(tmp_path), stored.astype(int) + intercept)


def test_bits_of_which_the_header_is_wrong(tmp_path, body_hu):
    stored = (body_hu + 1024).clip(0).astype("u2")
    write_slices(tmp_path, stored, np.arange(COUNT), BitsStored=12, HighBit=15)
    with pytest.raises(UnusableScanError, match=r"12 stored bits up to bit 15 .* set HighBit to 11 if you know"):
        read_only_scan(tmp_path)


@pytest.mark.parametrize(("high", "is_compressed"), [(15, True), (9, False)])
def test_bits_that_cannot_be_where_the_header_says(tmp_path, body_hu, high, is_compressed):
    stored = (body_hu + 1024).clip(0).astype("u2")
    write_slices(tmp_path, stored, np.arange(COUNT), BitsStored=12, HighBit=high)
    if is_compressed:
        compress(tmp_path)
    with pytest.raises(UnusableScanError, match=f"12 stored bits up to bit {high} .* which must be 11 here"):
        read_only_scan(tmp_path)


def test_a_range_of_padding(tmp_path, body_hu, outside):
    stored = (body_hu + 1024).clip(0).astype("u2")
    stored[:, outside] = np.random.default_rng(0).integers(60000, 65536, np.count_nonzero(outside))
    write_slices(tmp_path, stored, np.arange(COUNT), PixelPaddingValue=65535, PixelPaddingRangeLimit=60000)
    assert read_only_scan(tmp_path)[:, outside].max() <= PADDED


@pytest.mark.parametrize("value", [40, -950])
def test_padding_with_the_value_of_tissue_is_none_inside_the_body(tmp_path, body_hu, value):
    """Declared, but not used: no corner of a slice has it."""
    body_hu[:, 16:20, 20:26] = value
    header = {"PixelPaddingValue": padding_value(value), "RescaleIntercept": 0}
    write_slices(tmp_path, body_hu.astype("i2"), np.arange(COUNT), **header)
    np.testing.assert_array_equal(read_only_scan(tmp_path), body_hu)


def test_padding_by_each_slices_own_rescale(tmp_path, body_hu, outside):
    slopes, intercepts = np.array([1, 2]), np.array([-1024, 0])
    which = np.arange(COUNT) % 2
    stored = np.rint((body_hu - intercepts[which, None, None]) / slopes[which, None, None]).astype("i2")
    expected = stored.astype(int) * slopes[which, None, None] + intercepts[which, None, None]
    stored[:, outside] = 4000

    def rescale(index: int) -> dict:
        return {"RescaleSlope": slopes[index % 2], "RescaleIntercept": intercepts[index % 2], "PixelPaddingValue": 4000}

    write_slices(tmp_path, stored, np.arange(COUNT), each=rescale)
    values = read_only_scan(tmp_path)
    assert values[:, outside].max() <= PADDED
    np.testing.assert_array_equal(values[:, ~outside], expected[:, ~outside])


def test_padding_of_compressed_slices(tmp_path, body_hu, outside):
    stored = (body_hu + 1024).clip(0).astype("u2")
    expected = stored.astype(int) - 1024
    stored[:, outside] = 63536
    write_slices(tmp_path, stored, np.arange(COUNT), BitsStored=12, HighBit=11, PixelPaddingValue=63536)
    compress(tmp_path)
    values = read_only_scan(tmp_path)
    assert values[:, outside].max() <= PADDED
    np.testing.assert_array_equal(values[:, ~outside], expected[:, ~outside])


def compress(folder) -> None:
    for path in folder.iterdir():
        dataset = dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)


@pytest.mark.parametrize("value", [63536, 40000, 4095])
def test_values_that_no_ct_has_are_named_where_they_are_not_declared(tmp_path, body_hu, outside, value):
    stored = (body_hu + 1024).clip(0).astype("u2")
    stored[:, outside] = value
    write_slices(tmp_path, stored, np.arange(COUNT))
    with pytest.raises(UnusableScanError, match="which no CT has: they are padding that is not declared"):
        read_only_scan(tmp_path)


def test_low_values_without_their_sign_are_named(tmp_path, body_hu):
    write_slices(tmp_path, body_hu.astype("i2").view("u2"), np.arange(COUNT), RescaleIntercept=0)
    with pytest.raises(UnusableScanError, match=r"above 31000 HU .* low values stored without their sign"):
        read_only_scan(tmp_path)


@pytest.mark.parametrize(("value", "bits"), [(-2000, 16), (-3024, 16), (-32768, 16), (-3024, 12)])
def test_low_values_around_the_field_of_view_are_taken_as_they_are(tmp_path, body_hu, outside, value, bits):
    body_hu[:, outside] = value
    header = {"RescaleIntercept": 0, "BitsStored": bits, "HighBit": bits - 1}
    write_slices(tmp_path, body_hu.astype("i2"), np.arange(COUNT), **header)
    np.testing.assert_array_equal(read_only_scan(tmp_path), body_hu)


@pytest.mark.parametrize("first", ["u2", "i2"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_slices_signed_and_unsigned(tmp_path, body_hu, first, is_compressed):
    """One number type for all, that of the first slice, would make 64512 of -1024."""
    kinds = {"u2": -1024, "i2": 0}
    body_hu = body_hu.clip(-1024)
    last = next(kind for kind in kinds if kind != first)
    for kind, where in ((first, slice(0, 1)), (last, slice(1, COUNT))):
        stored = (body_hu[where] - kinds[kind]).astype(kind)
        write_slices(tmp_path, stored, np.arange(COUNT)[where], prefix=kind, RescaleIntercept=kinds[kind])
    if is_compressed:
        compress(tmp_path)
    np.testing.assert_array_equal(read_only_scan(tmp_path), body_hu)


@pytest.mark.parametrize("is_extended", [True, False])
def test_signed_values_of_fewer_bits(tmp_path, body_hu, is_extended):
    """The bits above the stored ones repeat the sign, or are empty."""
    stored = body_hu.clip(-2048, 2047).astype("i2")
    written = stored if is_extended else stored & 0xFFF
    write_slices(tmp_path, written, np.arange(COUNT), BitsStored=12, HighBit=11, RescaleIntercept=0)
    np.testing.assert_array_equal(read_only_scan(tmp_path), stored)


def test_rescale_of_fractions(tmp_path, body_hu):
    stored = ((body_hu + 1024) * 2).clip(0).astype("u2")
    write_slices(tmp_path, stored, np.arange(COUNT), RescaleSlope=0.5, RescaleIntercept=-1024.5)
    np.testing.assert_array_equal(read_only_scan(tmp_path), stored * 0.5 - 1024.5)


def test_rescale_that_some_slices_lack(tmp_path, body_hu):
    stored = (body_hu + 1024).clip(0).astype("u2")
    write_slices(tmp_path, stored, np.arange(COUNT))
    write_slices(tmp_path, stored[:1], [0], RescaleIntercept=None)
    with pytest.raises(UnusableScanError, match="without rescale slope and intercept among others"):
        read_only_scan(tmp_path)
