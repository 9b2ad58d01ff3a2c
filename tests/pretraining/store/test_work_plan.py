"""What a part has to do, planned without files: what is left, what clashes, and when the store can be completed."""

import pytest

from pretraining.ct.scan import Scan, volume_id
from pretraining.store.work_plan import Part, make_plan, split_id_clashes


def scan(name):
    return Scan(volume_id(name.split(".")[0]), name, (name,))


def names(scans):
    return [scan.name for scan in scans]


SCANS = [scan(name) for name in ("a.nii", "b.nii", "d.nii", "twice.nii", "twice.nrrd")]
UNUSABLE = {"c.nii": "is a pipe"}


def test_one_part_does_all_that_the_store_lacks():
    plan = make_plan(SCANS, UNUSABLE, Part(), {"b": "b.nii", "elsewhere": "elsewhere.nii"})
    assert names(plan.to_do) == ["a.nii", "d.nii"] and names(plan.done) == ["b.nii"]
    assert list(plan.failed) == ["c.nii", "twice.nii", "twice.nrrd"] and plan.failed["c.nii"] == "is a pipe"
    assert plan.own_names is None and plan.own_ids is None


def test_parts_share_out_every_scan_once():
    parts = [make_plan(SCANS, UNUSABLE, Part(number, 2), {"b": "b.nii"}) for number in range(2)]
    assert [sorted(plan.part_names) for plan in parts] == [
        ["a.nii", "c.nii", "twice.nii"],
        ["b.nii", "d.nii", "twice.nrrd"],
    ]
    assert [names(plan.to_do) for plan in parts] == [["a.nii"], ["d.nii"]]
    assert [names(plan.done) for plan in parts] == [[], ["b.nii"]]
    assert [list(plan.failed) for plan in parts] == [["c.nii", "twice.nii"], ["twice.nrrd"]]
    assert [plan.own_ids for plan in parts] == [{"a"}, {"b", "d"}]
    assert [plan.own_names for plan in parts] == [plan.part_names for plan in parts]
    assert all(plan.names == parts[0].names and len(plan.names) == 6 for plan in parts)


def test_more_parts_than_scans():
    plan = make_plan([scan("a.nii")], {}, Part(2, 5), {})
    assert not plan.to_do and not plan.failed and plan.own_names == set() and plan.open_names((), ()) == {"a.nii"}


@pytest.mark.parametrize(
    ("stored", "failed", "expected"),
    [
        ((), (), {"a.nii", "b.nii", "c.nii", "d.nii", "twice.nii", "twice.nrrd"}),
        (("a", "b", "d"), ("c.nii", "twice.nii", "twice.nrrd"), set()),
        (("a", "b"), ("c.nii", "twice.nii", "twice.nrrd"), {"d.nii"}),
        (("a", "b", "twice"), ("c.nii", "d.nii", "twice.nii"), {"twice.nrrd"}),  # a volume of neither of the two
    ],
)
def test_open_is_what_no_part_has_stored_or_given_up(stored, failed, expected):
    for number in range(2):
        assert make_plan(SCANS, UNUSABLE, Part(number, 2), {}).open_names(stored, failed) == expected


def test_two_scans_of_one_id_are_both_set_aside():
    usable, reasons = split_id_clashes(
        [scan("a.nii"), scan("A.nrrd"), scan("b.nii"), scan("c d.mha"), scan("c_d.mha")], {}
    )
    assert names(usable) == ["b.nii"]
    assert set(reasons) == {"a.nii", "A.nrrd", "c d.mha", "c_d.mha"}
    assert "A.nrrd" in reasons["a.nii"] and "c_d.mha" in reasons["c d.mha"]


def test_a_scan_that_is_in_the_store_keeps_its_id():
    usable, reasons = split_id_clashes([scan("a.nii"), scan("a.nrrd")], {"a": "a.nii"})
    assert names(usable) == ["a.nii"]
    assert list(reasons) == ["a.nrrd"]
    usable, reasons = split_id_clashes([scan("a.nrrd")], {"a": "a.nii"})
    assert not usable
    assert "a.nii" in reasons["a.nrrd"]


def test_of_many_scans_of_one_id_a_reason_names_a_few():
    """All of them would make a reason as long as the archive's list of names, for each of them."""
    usable, reasons = split_id_clashes([scan(f"{'?' * 4}.{number}") for number in range(1000)], {})
    assert not usable and len(reasons) == 1000
    assert "and so would ????.0, ????.1, ????.2 and 996 more; rename" in reasons["????.500"]
    assert "and so would ????.1, ????.2, ????.3 and 996 more; rename" in reasons["????.0"]
