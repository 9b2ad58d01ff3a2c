"""Resuming from a checkpoint that is damaged or crafted: refused in words, and nothing of it is used."""

import copy
import re
from pathlib import Path

import pytest
import torch

from nnunetv2_cads.encoder_file.safe_loading import CheckpointFileError
from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.presets import PRESETS
from pretraining.run.checkpoint import check_run_state, load_checkpoint, save_checkpoint
from pretraining.store.store import StoreSummary
from pretraining.system.errors import UserError

STORE = StoreSummary("ab" * 32, 4.0)
SMALL = {**PRESETS["cads"], "encoder_size": "b0", "head_out_dim": 32, "head_hidden_dim": 16, "head_bottleneck_dim": 8}


def make_pretrainer() -> Pretrainer:
    return Pretrainer(PretrainConfig().replace(**SMALL), steps_per_epoch=2, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint of a run whose optimizer has made a step, and its content."""
    pretrainer, path = make_pretrainer(), tmp_path_factory.mktemp("run") / "checkpoint_latest.pth"
    for parameter in pretrainer.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    pretrainer.optimizer.step()
    pretrainer.step = 3
    save_checkpoint(path, pretrainer, STORE)
    return path, torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def untouched():
    return make_pretrainer()


def refusal(path: Path, pretrainer: Pretrainer) -> str:
    before = {key: value.clone() for key, value in pretrainer.student.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_checkpoint(path, pretrainer, STORE)
    message = str(error.value)
    assert message.startswith(f"{path}: cannot resume from this file") and "\n" not in message
    assert all(torch.equal(value, before[key]) for key, value in pretrainer.student.state_dict().items())
    assert pretrainer.step == 0
    return message


def test_a_run_resumes_with_what_was_saved(written):
    pretrainer = make_pretrainer()
    load_checkpoint(written[0], pretrainer, STORE)
    assert pretrainer.step == 3
    moment = next(iter(pretrainer.optimizer.state.values()))["exp_avg"]
    assert moment.abs().sum() > 0


def test_a_checkpoint_of_another_version_of_pytorch_is_resumed(written, tmp_path):
    """Its AdamW has other settings than this one's; ours are taken from the file, the rest from this version."""
    content = {**written[1], "optimizer": copy.deepcopy(written[1]["optimizer"])}
    for group in content["optimizer"]["param_groups"]:
        group.pop("fused")
        group["of_the_future"] = True
        group["eps"] = 1e-5
    torch.save(content, tmp_path / "checkpoint.pth")
    pretrainer = make_pretrainer()
    load_checkpoint(tmp_path / "checkpoint.pth", pretrainer, STORE)
    assert pretrainer.step == 3
    for group in pretrainer.optimizer.param_groups:
        assert group["fused"] and "of_the_future" not in group and group["eps"] == 1e-5
    moment = next(iter(pretrainer.optimizer.state.values()))["exp_avg"]
    assert torch.equal(moment, written[1]["optimizer"]["state"][0]["exp_avg"])


@pytest.mark.parametrize("place", [0.01, 0.6])
def test_a_flipped_bit_is_noticed(written, untouched, tmp_path, place):
    content = bytearray(written[0].read_bytes())
    content[int(place * len(content))] ^= 4
    (tmp_path / "checkpoint.pth").write_bytes(content)
    assert "damaged" in refusal(tmp_path / "checkpoint.pth", untouched)


@pytest.mark.parametrize("kept", [10, 0.5, -1])
def test_a_truncated_file_is_noticed(written, untouched, tmp_path, kept):
    content = written[0].read_bytes()
    content = content[: int(kept * len(content)) if isinstance(kept, float) else kept]
    (tmp_path / "checkpoint.pth").write_bytes(content)
    assert "damaged" in refusal(tmp_path / "checkpoint.pth", untouched)


WEIGHT = "backbone.block1.0.attn.q.weight"


@pytest.mark.parametrize("change", [lambda c: c.pop("run"), lambda c: c["student"].update({WEIGHT: torch.zeros(2, 2)})])
def test_a_file_of_another_state_is_refused(written, untouched, tmp_path, change):
    content = {**written[1], "student": {**written[1]["student"]}}
    change(content)
    torch.save(content, tmp_path / "checkpoint.pth")
    refusal(tmp_path / "checkpoint.pth", untouched)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda c: c["student"].pop(WEIGHT), f"missing or unexpected entries in 'student' (first: {WEIGHT})"),
        (lambda c: c["teacher"].update(extra=torch.zeros(2)), "'teacher' (first: extra)"),
        (lambda c: c["student"].update({WEIGHT: torch.zeros(2, 2)}), "the run has torch.float32 (32, 32)"),
        (lambda c: c["student"].update({WEIGHT: torch.zeros(32, 32).double()}), "torch.float64 (32, 32)"),
        (lambda c: c["student"].update({WEIGHT: torch.zeros(1).expand(32, 32)}), "holds less"),
        (lambda c: c["student"].update({WEIGHT: "text"}), "no tensor"),
        (lambda c: c.update(center=torch.zeros(10**6)), "'center'"),
        (lambda c: c.update(step=-1), "step -1"),
        (lambda c: c.update(step=10**9), "step 1000000000"),
        (lambda c: c.update(step=2.0), "step 2.0"),
        (lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)), "'optimizer 0 exp_avg'"),
        (lambda c: c["optimizer"]["state"][0].pop("exp_avg_sq"), "'optimizer 0'"),
        (lambda c: c["optimizer"]["param_groups"].pop(), "other groups"),
        (lambda c: c["optimizer"]["param_groups"][0].pop("betas"), "other settings"),
        (lambda c: c["scaler"].update(scale=torch.zeros(3)), "loss scaler"),
    ],
)
def test_every_part_of_the_state_is_compared(written, untouched, change, part):
    content = {**written[1], **{key: copy.copy(written[1][key]) for key in ("student", "teacher", "scaler")}}
    optimizer = content["optimizer"]
    content["optimizer"] = {
        "state": {**optimizer["state"], 0: {**optimizer["state"][0]}},
        "param_groups": [{**group} for group in optimizer["param_groups"]],
    }
    change(content)
    with pytest.raises(CheckpointFileError, match=re.escape(part)):
        check_run_state(content, untouched)
