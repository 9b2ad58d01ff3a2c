"""Arms from flags, and what a second command on the same OUT may change."""

import dataclasses

import pytest

from nnunetv2_cads.comparison.arms import Arm, make_arms
from nnunetv2_cads.comparison.design import Design, Training, read_design
from pretraining.system.errors import UserError


@pytest.fixture
def encoder(tmp_path):
    path = tmp_path / "cads_encoder.pth"
    path.touch()
    return path


@pytest.fixture
def design(encoder):
    return Design(
        dataset="Dataset001_Blobs",
        plans="nnUNetPlans",
        configuration="3d_fullres",
        patients={f"case_{i}": f"case_{i}" for i in range(10)},
        test=("case_1", "case_2"),
        arms=make_arms(["cads", "nnUNetTrainer"], [str(encoder)]),
        budgets=(1, 4),
        seeds=2,
        epochs=3,
        iterations=5,
    )


def test_scratch_is_always_the_baseline(encoder, tmp_path):
    other = tmp_path / "other.pth"
    other.touch()
    arms = make_arms(["nnUNetResEncM", "mine", "cads"], [str(encoder), f"mine={other}"])
    assert [(arm.name, arm.network, arm.encoder) for arm in arms] == [
        ("scratch", None, None), ("nnUNetResEncM", "resenc_m", None), ("mine", None, other), ("cads", None, encoder),
    ]  # fmt: skip
    (_, stock, ours) = make_arms(["nnUNetTrainerAdam", "nnUNetTrainerCoTr"], [])
    assert (stock.network, ours.network) == ("plain", None)
    assert [arm.name for arm in make_arms([], [f"mine={other}"])] == ["scratch", "mine"]


@pytest.mark.parametrize(
    ("names", "encoders", "message"),
    [
        (["cads"], [], "--arms cads needs its encoder"),
        (["nnUNetTrainerCADS_50epochs"], ["FILE"], "--arms nnUNetTrainerCADS_50epochs needs its encoder"),
        (["cads"], ["FILE", "FILE"], "two encoders of the name cads"),
        (["cads"], ["nowhere.pth"], "nowhere.pth: no such encoder file"),
        (["scratch"], ["scratch=FILE"], "'scratch' cannot be an encoder's name"),
        (["x"], ["../x=FILE"], "'../x' cannot be an encoder's name"),
    ],
)
def test_arms_that_cannot_be_are_named(encoder, names, encoders, message):
    with pytest.raises(UserError, match=message):
        make_arms(names, [text.replace("FILE", str(encoder)) for text in encoders])


def test_budgets_of_a_seed_are_nested_and_leave_the_test_cases_out(design):
    for seed in (0, 1):
        small, large = (design.learnt_cases(budget, seed) for budget in (1, 4))
        assert large[:1] == small and not set(large) & set(design.test)
    assert Training("cads", 4, 1) in list(design.trainings())


def test_a_design_survives_saving(design, tmp_path):
    design.write(tmp_path / "comparison.json")
    assert read_design(tmp_path / "comparison.json") == design
    (tmp_path / "comparison.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"comparison\.json: is damaged"):
        read_design(tmp_path / "comparison.json")


def test_arms_budgets_and_seeds_can_be_added(design):
    later = dataclasses.replace(design, arms=make_arms(["nnUNetResEncM"], []), budgets=(2,), seeds=1)
    joined = later.extended(design)
    assert [arm.name for arm in joined.arms] == ["scratch", "cads", "nnUNetTrainer", "nnUNetResEncM"]
    assert (joined.budgets, joined.seeds) == ((1, 2, 4), 2)
    assert set(design.trainings()) < set(joined.trainings())
    assert joined.learnt_cases(4, 1) == design.learnt_cases(4, 1)


def test_an_encoder_file_that_was_replaced_is_another_one(design, encoder):
    encoder.write_bytes(b"other weights")
    with pytest.raises(UserError, match="has another encoder file for arm cads"):
        dataclasses.replace(design, arms=make_arms(["cads"], [str(encoder)])).extended(design)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 4}, "has epochs 3, not 4"),
        ({"test": ("case_1",)}, r"has test \('case_1', 'case_2'\), not"),
        ({"mirroring": False}, "has mirroring True, not False"),
        ({"arms": (Arm("cads", "nnUNetTrainerCADS"),)}, "has another encoder file for arm cads"),
    ],
)
def test_all_else_must_stay(design, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(design, **change).extended(design)


def test_budgets_must_leave_cases(design):
    with pytest.raises(UserError, match="--labels 9: only 8 labelled cases are left"):
        dataclasses.replace(design, budgets=(1, 9))
