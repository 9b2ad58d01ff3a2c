"""`cads_doctor --self-test` on this machine's CPU, which is sound, and with operators that are not."""

import pytest
import torch

from nnunetv2_cads.doctor import known_step, operators
from nnunetv2_cads.doctor.cli import main as doctor
from nnunetv2_cads.doctor.finding import OK, PROBLEM
from nnunetv2_cads.doctor.self_test import check_operators, check_step
from nnunetv2_cads.network_architecture.ops import mlp

CPU = torch.device("cpu")


def test_a_sound_machine(capsys):
    assert doctor(["--self-test", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line[9:].split(":")[0] for line in lines if not line.startswith(" ")]
    expected = ["device", "step, float32", "step, bf16", "step, compiled", "operators", "two ranks", "fine-tuning"]
    assert [name for name in expected if name in names] == expected
    assert {"speed, float32", "speed, bf16"} <= set(names)
    assert not [line for line in lines if line.startswith("problem")]


def test_the_shipped_numbers_are_those_of_plain_cads():
    """They were made on another machine, perhaps; float64 differs by rounding alone."""
    known, found = known_step.known_numbers(), known_step.numbers_of_plain()
    assert {kind: len(tensors) for kind, tensors in known._asdict().items()} == {
        "maps": 8, "losses": 4, "gradients": 232, "weights": 232,
    }  # fmt: skip
    worst = known_step.differences(found, known)
    assert max(difference for difference, _ in worst.values()) < 1e-6


@pytest.mark.parametrize("fault", ["forward", "gradient", "NaN"])
def test_a_wrong_operator_is_named(fault, monkeypatch):
    convolve, weight_gradient = mlp.convolve, mlp.weight_gradient

    def wrong_convolve(x, kernel, bias=None):
        y = convolve(x, kernel, bias)
        return y * torch.nan if fault == "NaN" else y + 0.02 * y.roll(1, -1)

    if fault == "gradient":
        monkeypatch.setattr(mlp, "weight_gradient", lambda x, gradient: 1.02 * weight_gradient(x, gradient))
    else:
        monkeypatch.setattr(mlp, "convolve", wrong_convolve)
    (finding,) = check_step(CPU, "none")
    assert finding.level == PROBLEM and "PyTorch" in finding.text
    assert ("maps are" in finding.text) == (fault != "gradient")
    if fault == "gradient":
        assert "dwconv" in finding.text
    findings = list(check_operators())
    assert findings[0].level == PROBLEM and "MLP with depthwise convolution: " in findings[0].text


def test_operators_are_off_by_much_less_than_the_limits():
    for case in operators.CASES:
        limit = operators.BF16 / 4 if case.bf16 else operators.FLOAT32 / 10
        if case.bf16 and "MLP" in case.name:  # four layers round one after another
            limit *= 2
        assert max(operators.differences(case).values()) < limit, case.name
    assert {finding.level for finding in check_operators()} == {OK}


def test_a_device_that_is_not_there(capsys):
    assert doctor(["--self-test", "--device", "cuda:9"]) == 2
    assert "device 'cuda:9' cannot be used" in capsys.readouterr().err
