"""Arms from flags, and what a second command on the same OUT may change."""

import dataclasses
import re

import pytest

from nnunetv2_cads.comparison.arms import KNOWN, Arm, check_encoder_file, make_arms, with_settings
from nnunetv2_cads.comparison.design import Design, Training, read_design
from nnunetv2_cads.comparison.flags import NAMED_ARMS, flags_of_command
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
        plans_sha256="0",
        configuration="3d_fullres",
        patients={f"case_{i}": f"case_{i}" for i in range(10)},
        test=("case_1", "case_2"),
        arms=make_arms(["cads", "nnUNetTrainer"], [str(encoder)]),
        budgets=(1, 4),
        seeds=2,
        epochs=3,
        iterations=5,
    )


def test_a_flag_that_is_repeated_adds_to_itself():
    words = "OUT --set initial_lr=2e-3 --set encoder_lr=1e-3 --arms CoTr --arms nnUNetTrainer --labels 1 --labels 2 4"
    flags = flags_of_command().parse_args(words.split())
    assert flags.settings == ["initial_lr=2e-3", "encoder_lr=1e-3"]
    assert (flags.arms, flags.labels) == (["CoTr", "nnUNetTrainer"], [1, 2, 4])


def test_the_arms_that_help_names_are_those_that_need_no_file():
    assert set(NAMED_ARMS) == set(KNOWN)


def test_scratch_is_always_the_baseline(encoder, tmp_path):
    other = tmp_path / "other.pth"
    other.touch()
    arms = make_arms(["nnUNetResEncM", "mine", "cads"], [str(encoder), f"mine={other}"])
    assert [(arm.name, arm.network, arm.encoder) for arm in arms] == [
        ("scratch", None, None), ("nnUNetResEncM", "resenc_m", None), ("mine", None, other), ("cads", None, encoder),
    ]  # fmt: skip
    (_, stock, ours) = make_arms(["nnUNetTrainerAdam", "nnUNetTrainerCoTr"], [])
    assert (stock.network, ours.network) == ("plain", None)
    (_, its_own) = make_arms(["nnUNetTrainerBN"], [])  # its network needs parts that nnU-Net's plans name
    assert its_own.network == "plain"
    (_, variant) = make_arms(["nnUNetResEncMAdam1en3"], [])
    assert (variant.trainer, variant.network) == ("nnUNetTrainerAdam1en3", "resenc_m")
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
        (["nnUNetResEncM_half"], [], "nnUNetTrainer_half: nnU-Net finds no trainer of this name"),
        (["nnUNetResEncMCoTr"], [], "nnUNetTrainerCoTr: has a network of its own and cannot train nnUNetResEncM"),
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


def test_an_encoder_file_may_move_but_not_change(design, encoder, tmp_path):
    moved = encoder.rename(tmp_path / "moved.pth")
    with pytest.raises(UserError, match="is gone; put it back, or name its new place with --encoder cads=FILE"):
        check_encoder_file(design.arm("cads"))
    joined = dataclasses.replace(design, arms=make_arms([], [str(moved)])).extended(design)
    check_encoder_file(joined.arm("cads"))
    moved.write_bytes(b"trained on")
    with pytest.raises(UserError, match="is not the file that arm cads began with"):
        check_encoder_file(joined.arm("cads"))


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
        ({"plans_sha256": "1"}, "began with other nnUNetPlans, which were made anew since"),
        ({"arms": (Arm("scratch", "x", settings={"initial_lr": 1.0}),)}, "with its own settings, not initial_lr=1.0"),
        ({"arms": (Arm("cads", "nnUNetTrainerCADS"),)}, "has another encoder file for arm cads"),
    ],
)
def test_all_else_must_stay(design, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(design, **change).extended(design)


def test_budgets_must_leave_cases(design):
    with pytest.raises(UserError, match="--labels 9: only 8 labelled cases are left"):
        dataclasses.replace(design, budgets=(1, 9))


def test_settings_are_of_all_arms_that_have_them_or_of_one():
    arms = make_arms(["nnUNetTrainer", "nnUNetTrainerCoTr_AdamW"], [])
    scratch, stock, cotr = with_settings(
        arms,
        ["initial_lr=2e-3", "scratch:encoder_lr_decay=1", "scratch:sawtooth=true", "scratch:frozen_encoder_epochs=3"],
    )
    assert scratch.settings == {
        "initial_lr": 0.002, "encoder_lr_decay": 1.0, "sawtooth": True, "frozen_encoder_epochs": 3,
    }  # fmt: skip
    assert (stock.settings, cotr.settings) == ({}, {"initial_lr": 0.002})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("initial_lr", "--set initial_lr: give NAME=NUMBER"),
        ("initial_lr=fast", "--set initial_lr=fast: give NAME=NUMBER"),
        ("initial_lr=true", "--set initial_lr=true: give a value like 0.0005"),
        ("frozen_encoder_epochs=1.5", "--set frozen_encoder_epochs=1.5: give a value like 0"),
        ("mirroring=false", "--set mirroring=false: no such arm has this setting; the settings are encoder_lr, "),
        ("nnUNetTrainer:initial_lr=1e-3", "no such arm has this setting"),
        ("nobody:initial_lr=1e-3", "no such arm has this setting"),
    ],
)
def test_settings_that_cannot_be_are_named(flag, message):
    with pytest.raises(UserError, match=re.escape(message)):
        with_settings(make_arms(["nnUNetTrainer"], []), [flag])


def test_settings_count_for_arms_that_come_later(design, encoder):
    flags = ("encoder_lr=1e-3",)
    begun = dataclasses.replace(design, arms=with_settings(design.arms, flags), settings=flags)
    later = with_settings(make_arms(["mine"], [f"mine={encoder}"]), ["encoder_lr=1e-3", "mine:initial_lr=1e-3"])
    joined = dataclasses.replace(begun, arms=later, settings=(*flags, "mine:initial_lr=1e-3")).extended(begun)
    assert joined.arm("mine").settings == {"encoder_lr": 1e-3, "initial_lr": 1e-3}
    assert joined.arm("cads").settings == {"encoder_lr": 1e-3}
    assert joined.settings == ("encoder_lr=1e-3", "mine:initial_lr=1e-3")
