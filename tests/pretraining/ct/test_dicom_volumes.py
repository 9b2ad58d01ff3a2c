"""Which DICOM files are one volume: passes of a series, folders that share a series, copies, rounded positions."""

import hashlib
import shutil
from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import SERIES_UID, slice_header, write_slices

from pretraining.ct.find_scans import find_scans, passed_over_text
from pretraining.ct.read_ct import CTImage, read_ct
from pretraining.ct.scan import UnusableScanError

COUNT = 24


@pytest.fixture
def make_stored(make_body):
    """Makes stored values with an intercept of -1024, (slices, rows, columns)."""

    def make(count=COUNT, seed=0) -> np.ndarray:
        return (sitk.GetArrayFromImage(make_body((count, 20, 24), seed=seed)) + 1024).clip(0).astype("u2")

    return make


LOCALIZER, AXIAL = ({"ImageType": ["ORIGINAL", "PRIMARY", name]} for name in ("LOCALIZER", "AXIAL"))


def scans_of(folder):
    scans, unusable = find_scans(folder, folder / "store")
    assert not unusable
    return scans


def hu(stored: np.ndarray) -> np.ndarray:
    return stored.astype(int) - 1024


def matches(image: CTImage, stored: np.ndarray, spacing_mm: float) -> bool:
    return np.array_equal(image.values, hu(stored)) and np.isclose(image.spacing_xyz_mm[2], spacing_mm)


PASSES = [
    {"AcquisitionNumber": (1, 2)},
    {"TemporalPositionIdentifier": (1, 2)},
    {"TriggerTime": (100, 500)},
    {"EchoNumbers": (1, 2)},
    {"ImageType": (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"])},
    {"SeriesNumber": (1, 2)},
    {"ContrastBolusAgent": ("", "Iohexol")},
]


@pytest.mark.parametrize("header", PASSES)
@pytest.mark.parametrize("offset_mm", [2.5, 0, 20, 2.5 + 60])
def test_passes_that_alternate_are_volumes_of_their_own(tmp_path, make_stored, header, offset_mm):
    """Between each other, in the same places, or where one begins in the middle of the other."""
    ((keyword, values),) = header.items()
    bodies = [make_stored(seed=seed) for seed in (1, 2)]
    for number, (body, value) in enumerate(zip(bodies, values, strict=True)):
        places = 5 * np.arange(COUNT) + number * offset_mm
        write_slices(tmp_path, body, places, prefix=f"{number}_", **{keyword: value})
    scans = scans_of(tmp_path)
    images = [read_ct(scan) for scan in scans]
    assert len({scan.volume_id for scan in scans}) == 2
    assert sorted(next(n for n in (0, 1) if matches(image, bodies[n], 5)) for image in images) == [0, 1]


def name_of(uid=SERIES_UID, size="2024") -> str:
    return f"series-{hashlib.sha256(f'{uid}.{size}'.encode()).hexdigest()[:8]}"


@pytest.mark.parametrize("length", [1, 4, 8])
def test_acquisitions_that_continue_each_other_are_one_volume(tmp_path, make_stored, length):
    body = make_stored()
    write_slices(tmp_path, body, np.arange(COUNT), each=lambda index: {"AcquisitionNumber": index // length})
    (scan,) = scans_of(tmp_path)
    assert scan.name == name_of() and matches(read_ct(scan), body, 1)


@pytest.mark.parametrize("header", [lambda i: {"TriggerTime": 7 * i % 11}, lambda i: {"TriggerTime": i // 6 % 2}])
def test_times_of_slices_and_of_turns_are_no_passes(tmp_path, make_stored, header):
    body = make_stored()
    write_slices(tmp_path, body, np.arange(COUNT), each=header)
    (scan,) = scans_of(tmp_path)
    assert matches(read_ct(scan), body, 1)


def test_phases_of_two_acquisitions_each_are_two_volumes(tmp_path, make_stored):
    bodies = [make_stored(seed=seed) for seed in (1, 2)]
    for phase, body in enumerate(bodies):
        write_slices(
            tmp_path, body, np.arange(COUNT), prefix=f"{phase}_", TemporalPositionIdentifier=phase,
            each=lambda index, phase=phase: {"AcquisitionNumber": 2 * phase + index // (COUNT // 2)},
        )  # fmt: skip
    images = [read_ct(scan) for scan in scans_of(tmp_path)]
    assert sorted(next(n for n in (0, 1) if matches(image, bodies[n], 1)) for image in images) == [0, 1]


def test_a_pass_that_is_not_whole_costs_itself_alone(tmp_path, make_stored):
    body = make_stored(seed=1)
    for number in (1, 2):
        write_slices(tmp_path, make_stored(seed=number), np.arange(COUNT), f"{number}_", AcquisitionNumber=number)
    (tmp_path / "2_010.dcm").unlink()
    outcomes = []
    for scan in scans_of(tmp_path):
        try:
            outcomes.append(matches(read_ct(scan), body, 1))
        except UnusableScanError as error:
            outcomes.append("slices are missing" in str(error))
    assert outcomes == [True, True]


def test_slices_that_alternate_without_a_grid_for_each_are_refused(tmp_path, make_stored):
    which = [0, 1, 0, 1, 1, 0] * (COUNT // 6)
    write_slices(tmp_path, make_stored(), np.arange(COUNT), each=lambda index: {"AcquisitionNumber": which[index]})
    (scan,) = scans_of(tmp_path)
    with pytest.raises(UnusableScanError, match="alternate in AcquisitionNumber"):
        read_ct(scan)


@pytest.mark.parametrize("folder_of", [lambda i: i % 2, lambda i: i // 9, lambda i: i], ids=["turns", "blocks", "each"])
def test_a_series_over_several_folders_is_one_volume(tmp_path, make_stored, folder_of):
    body = make_stored()
    for index in range(COUNT):
        write_slices(tmp_path / "patient" / f"part {folder_of(index)}", body[index : index + 1], [index], f"{index}_")
    (scan,) = scans_of(tmp_path)
    assert scan.name == f"patient/{name_of()}" and matches(read_ct(scan), body, 1)


def test_a_missing_slice_of_a_series_over_two_folders_is_seen(tmp_path, make_stored):
    body = make_stored()
    for index in set(range(COUNT)) - {10}:
        write_slices(tmp_path / f"{index % 2}", body[index : index + 1], [index], f"{index}_")
    (scan,) = scans_of(tmp_path)
    with pytest.raises(UnusableScanError, match="slices are missing"):
        read_ct(scan)


@pytest.mark.parametrize("where", ["copies", "."])
def test_copies_of_slices_count_once(tmp_path, make_stored, where):
    """In whichever folder, under other identifiers, and with numbers written in another way."""
    body = make_stored()
    write_slices(tmp_path, body, np.arange(COUNT))
    expected = scans_of(tmp_path)
    write_slices(tmp_path / where, body[4:12], [f"{index}.00" for index in range(4, 12)], "copy_")
    assert scans_of(tmp_path) == expected and matches(read_ct(expected[0]), body, 1)


@pytest.mark.parametrize("shift_mm", [0, 3, 0.4, COUNT + 0.5])
def test_two_patients_scans_with_one_series_identifier_stay_apart(tmp_path, make_stored, shift_mm):
    bodies = {name: make_stored(seed=seed) for seed, name in enumerate(("a", "b"))}
    for number, (name, body) in enumerate(bodies.items()):
        write_slices(tmp_path / name, body, np.arange(COUNT) + number * shift_mm)
    scans = scans_of(tmp_path)
    assert [scan.name for scan in scans] == [f"{name}/{name_of()}" for name in bodies]
    assert all(matches(read_ct(scan), body, 1) for scan, body in zip(scans, bodies.values(), strict=True))


@pytest.mark.parametrize("header", [{"PatientID": "2"}, {"StudyInstanceUID": "7.7"}, {"FrameOfReferenceUID": "7.8"}])
def test_two_patients_scans_that_would_fit_stay_apart(tmp_path, make_stored, header):
    body = make_stored()
    write_slices(tmp_path / "a", body, np.arange(COUNT))
    write_slices(tmp_path / "b", body, np.arange(COUNT) + COUNT, **header)
    assert [scan.name for scan in scans_of(tmp_path)] == [f"a/{name_of()}", f"b/{name_of()}"]


@pytest.mark.parametrize("shift_mm", [0.5, COUNT])
@pytest.mark.parametrize("header", [{"PatientID": "2"}, {"StudyInstanceUID": "1.3"}, {"FrameOfReferenceUID": "1.2.8"}])
def test_two_patients_scans_in_one_folder_are_two_volumes(tmp_path, make_stored, shift_mm, header):
    """One between the other, or on top of it."""
    bodies = [make_stored(seed=seed) for seed in (1, 2)]
    for number, body in enumerate(bodies):
        write_slices(tmp_path, body, np.arange(COUNT) + number * shift_mm, f"{number}_", **(header if number else {}))
    images = [read_ct(scan) for scan in scans_of(tmp_path)]
    assert len(images) == 2
    assert sorted(next(n for n in (0, 1) if matches(image, bodies[n], 1)) for image in images) == [0, 1]


def test_a_study_identifier_for_each_slice_tells_nothing(tmp_path, make_stored):
    """As writers of single files make them."""
    body = make_stored()
    write_slices(tmp_path, body, np.arange(COUNT), each=lambda index: {"StudyInstanceUID": f"1.2.{index}"})
    (scan,) = scans_of(tmp_path)
    assert scan.name == name_of() and matches(read_ct(scan), body, 1)


@pytest.mark.parametrize(
    "header",
    [
        {"ImageOrientationPatient": ["1.0", "-0", "0.000001", "0", "1.00", "0"]},
        {"PixelSpacing": ["1.0", "1.000"]},
        {"FrameOfReferenceUID": ""},
    ],
)
def test_a_series_is_one_however_its_folders_write_numbers(tmp_path, make_stored, header):
    body = make_stored()
    write_slices(tmp_path / "even", body[::2], np.arange(0, COUNT, 2))
    write_slices(tmp_path / "odd", body[1::2], np.arange(1, COUNT, 2), **header)
    (scan,) = scans_of(tmp_path)
    assert matches(read_ct(scan), body, 1)


def test_equal_slices_of_two_phases_are_no_copies(tmp_path, make_stored):
    bodies = [make_stored(seed=seed) for seed in (1, 2)]
    for number, body in enumerate(bodies):
        body[[0, COUNT // 2, COUNT - 1]] = 24
        write_slices(tmp_path, body, np.arange(COUNT), f"{number}_", AcquisitionNumber=number)
    images = [read_ct(scan) for scan in scans_of(tmp_path)]
    assert sorted(next(n for n in (0, 1) if matches(image, bodies[n], 1)) for image in images) == [0, 1]


def test_a_colour_picture_in_a_series_does_not_spoil_it(tmp_path, make_stored):
    body = make_stored()
    write_slices(tmp_path, body, np.arange(COUNT))
    picture = np.zeros((body.shape[1], 3 * body.shape[2]), np.uint8)
    header = slice_header(picture, 9.5, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    header.Columns = body.shape[2]
    header.save_as(tmp_path / "picture.dcm", enforce_file_format=True)
    images = [scan for scan in scans_of(tmp_path) if len(scan.files) > 1]
    assert len(images) == 1 and matches(read_ct(images[0]), body, 1)


@pytest.mark.parametrize(
    "header",
    [
        {},  # as a slice of the CT, in a place of its own
        {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
        {"PixelSpacing": [0.5, 0.7]},
        {"Rows": 24, "Columns": 20},
        {"ImageOrientationPatient": None, "ImagePositionPatient": None},
        {"FrameOfReferenceUID": "1.2.77"},
    ],
)
@pytest.mark.parametrize("places_mm", [[200.0], [7.5, -30.0], [7.0, 8.0, 9.0], [COUNT]])
@pytest.mark.parametrize("of_ct", [AXIAL, {}], ids=["axial", "unnamed"])
def test_localizers_in_a_series_are_set_aside_and_counted(tmp_path, make_stored, header, places_mm, of_ct):
    body = make_stored()
    write_slices(tmp_path, body, np.arange(COUNT), **of_ct)
    expected = scans_of(tmp_path)
    write_slices(tmp_path, make_stored(seed=5)[: len(places_mm)], places_mm, "scout_", **(LOCALIZER | header))
    passed_over = Counter()
    scans, unusable = find_scans(tmp_path, tmp_path / "store", passed_over)
    assert scans == expected and not unusable and matches(read_ct(scans[0]), body, 1)
    assert passed_over_text(passed_over) == f"DICOM localizers: {len(places_mm)}"


def test_localizers_alone_are_counted(tmp_path, make_stored):
    for number, cosines in enumerate(([1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])):
        write_slices(tmp_path, make_stored()[:2], [0, 0], f"{number}_", ImageOrientationPatient=cosines, **LOCALIZER)
    passed_over = Counter()
    assert find_scans(tmp_path, tmp_path / "store", passed_over) == ([], {})
    assert passed_over == {"DICOM localizers": 4}


def test_a_ct_that_is_called_a_localizer_is_read(tmp_path, make_stored):
    body = make_stored()
    write_slices(tmp_path / "ct", body, np.arange(COUNT), **LOCALIZER)
    (scan,) = scans_of(tmp_path)
    assert scan.name == f"ct/{name_of()}" and matches(read_ct(scan), body, 1)
    write_slices(tmp_path / "ct", body, np.arange(COUNT), "axial_", **AXIAL)
    scans = scans_of(tmp_path)
    assert len(scans) == 2 and all(matches(read_ct(scan), body, 1) for scan in scans)


def test_slices_that_are_not_called_localizers_are_never_left_out(tmp_path, make_stored):
    for word in (["ORIGINAL", "PRIMARY", "AXIAL", "LOCALIZER"], ["DERIVED", "SECONDARY"], ["LOCALIZER"]):
        folder = tmp_path / word[-1] / str(len(word))
        write_slices(folder, make_stored(), np.arange(COUNT))
        write_slices(folder, make_stored(seed=5)[:1], [200], "other_", ImageType=word)
        (scan,) = scans_of(folder)
        with pytest.raises(UnusableScanError, match="slices are missing"):
            read_ct(scan)


def test_rounded_positions_of_an_oblique_series(tmp_path, make_stored):
    body, normal = make_stored(), np.array([np.sin(0.2), 0, np.cos(0.2)])
    write_slices(
        tmp_path, body, np.zeros(COUNT),
        each=lambda index: {"ImagePositionPatient": [float(number) for number in (1.5 * index * normal).round(1)]},
        ImageOrientationPatient=[round(float(np.cos(0.2)), 6), 0, round(-float(np.sin(0.2)), 6), 0, 1, 0],
    )  # fmt: skip
    (scan,) = scans_of(tmp_path)
    image = read_ct(scan)
    np.testing.assert_array_equal(image.values, hu(body))
    assert image.spacing_xyz_mm[2] == pytest.approx(1.5, abs=0.01)


def test_an_altered_copy_of_a_series_is_a_series_of_its_own(tmp_path, make_stored):
    body = make_stored()
    write_slices(tmp_path / "a", body, np.arange(COUNT))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    body[7, 3, 3] += 1
    write_slices(tmp_path / "b", body, np.arange(COUNT))
    assert [len(scan.files) for scan in scans_of(tmp_path)] == [COUNT, COUNT]


@pytest.mark.parametrize(
    ("spacing_mm", "decimals"), [(0.625, 1), (0.65, 1), (1.25, 0), (1.5, 0), (2.5, 0), (3.3, 0), (0.333, 2), (0.75, 1)]
)
@pytest.mark.parametrize("first_mm", [0, -123.47])
def test_spacing_of_rounded_positions_is_that_of_their_line(tmp_path, make_stored, spacing_mm, decimals, first_mm):
    body = make_stored(60)
    write_slices(tmp_path, body, np.round(first_mm + spacing_mm * np.arange(60), decimals))
    (scan,) = scans_of(tmp_path)
    image = read_ct(scan)
    np.testing.assert_array_equal(image.values, hu(body))
    assert image.spacing_xyz_mm[2] == pytest.approx(spacing_mm, abs=0.1 * 10.0**-decimals)


@pytest.mark.parametrize(
    ("spacing_mm", "decimals"), [(0.625, 1), (0.7, 1), (1, 0), (1.25, 0), (1.5, 0), (2.5, 0), (5, 0), (0.333, 2)]
)
@pytest.mark.parametrize("missing", [[1], [10], [58], [30, 31]])
def test_a_missing_slice_is_no_rounding(tmp_path, make_stored, spacing_mm, decimals, missing):
    places = np.delete(np.round(spacing_mm * np.arange(60), decimals), missing)
    write_slices(tmp_path, make_stored(len(places)), places)
    (scan,) = scans_of(tmp_path)
    with pytest.raises(UnusableScanError, match="slices are missing"):
        read_ct(scan)


def test_a_slice_in_the_wrong_place_is_no_rounding(tmp_path, make_stored):
    places = 2.5 * np.arange(60)
    places[20] += 0.4
    write_slices(tmp_path, make_stored(60), places)
    (scan,) = scans_of(tmp_path)
    with pytest.raises(UnusableScanError, match="slices are missing"):
        read_ct(scan)
