"""The record of an encoder file, and the one writer of both formats."""

import subprocess
import sys

import pytest
import torch

from nnunetv2_cads.encoder_file.read import read_encoder_file
from nnunetv2_cads.encoder_file.record import (
    ARCHITECTURES,
    AXIS_ORDER,
    FIELDS,
    INTENSITIES,
    NOT_CT,
    PRETRAINING,
    SPACING,
    EncoderRecord,
    preprocessing_differences,
)
from nnunetv2_cads.encoder_file.write import write_encoder_file
from nnunetv2_cads.network_architecture.pvt_v2 import SIZES
from pretraining.config import PretrainConfig
from pretraining.run.checkpoint import encoder_record

SAME = {"percentile_00_5": -1024.0, "percentile_99_5": 1024.0, "mean": 0.0, "std": 1024.0}


def test_what_pretraining_writes_is_read_back_field_by_field():
    record = encoder_record(PretrainConfig(), steps=1, spacing_mm=1.0)
    content = record.to_file()
    assert EncoderRecord.from_file(content) == record
    assert content.keys() >= FIELDS.keys() | {"crop_size", "steps", "batch_size", "package_version"}
    assert (content["spacing_mm"], content["clip_hu"], content["axes"]) == ([1.0, 1.0, 1.0], [-1024, 1024], "zyx")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_formats_are_written_under_any_name(suffix, tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, requires_grad=True)}
    write_encoder_file(tmp_path / ".temporary", state, PRETRAINING.with_notes(steps=3), suffix)
    file = (tmp_path / ".temporary").rename(tmp_path / f"encoder{suffix}")
    content = read_encoder_file(file)
    assert content.record == PRETRAINING.with_notes(steps=3)
    assert all(torch.equal(value, state[key]) for key, value in content.state.items()) and len(content.state) == 2


def test_the_layout_of_a_file_is_the_published_one(tmp_path):
    write_encoder_file(tmp_path / "encoder.pth", {"a": torch.ones(2)}, EncoderRecord(axes="zxy"))
    content = torch.load(tmp_path / "encoder.pth", weights_only=True)
    assert content["teacher"].keys() == {"backbone.a"} and content["cads"] == {"axes": "zxy"}


def test_records_name_the_sizes_that_the_encoder_has():
    assert tuple(f"PVTv2-{size}" for size in SIZES) == ARCHITECTURES


@pytest.mark.parametrize(
    ("record", "spacing", "schemes", "intensities", "kinds"),
    [
        ({}, (1, 1, 1), ["CTNormalization"], SAME, []),
        ({}, (1, 1), ["CTNormalization"], SAME, []),
        ({}, (3, 1, 1), ["ZScoreNormalization"], SAME, [NOT_CT, SPACING]),
        ({}, (1, 1, 1), ["CTNormalization"], {**SAME, "mean": 77.0}, [INTENSITIES]),
        ({"clip_hu": [-200, 300]}, (1, 1, 1), ["CTNormalization"], SAME, [INTENSITIES]),
        ({"spacing_mm": [3, 1, 1], "axes": "zxy"}, (3, 1, 1), ["CTNormalization"], SAME, [AXIS_ORDER]),
    ],
)
def test_differences_have_a_kind(record, spacing, schemes, intensities, kinds):
    found = preprocessing_differences(EncoderRecord.from_file(record), spacing, schemes, {"0": intensities})
    assert [difference.kind for difference in found] == kinds


def test_records_need_no_torch():
    """Worker processes of `cads_preprocess` read constants from here; torch would take seconds to start."""
    code = "import sys; import nnunetv2_cads.encoder_file.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
