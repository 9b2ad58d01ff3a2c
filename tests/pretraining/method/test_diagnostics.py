"""The sums of a step: packed for the exchange and unpacked, and the same whatever the parts."""

import dataclasses

import pytest
import torch

from pretraining.method.diagnostics import StepSums, gather_statistics
from pretraining.method.loss import deep_distillation_loss
from pretraining.method.places import Places
from pretraining.method.student_teacher import TeacherOutput
from pretraining.system.processes import SINGLE_PROCESS

SAMPLES, K, C = 4, 12, 5


def sums_of(student, teacher, features) -> tuple[StepSums, torch.Tensor]:
    terms = deep_distillation_loss([student] * 4, teacher, torch.zeros(K), 0.05, 0.1)
    return StepSums.of_part([terms.total], terms, TeacherOutput(teacher, features, Places(None, None))), features


@pytest.fixture
def outputs():
    """Of four samples: student logits by view (3, 4, K), teacher logits (2, 4, K), features (2, 4, C)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((3, SAMPLES, K), (2, SAMPLES, K), (2, SAMPLES, C))]


def part(outputs, samples: slice) -> tuple[StepSums, torch.Tensor]:
    return sums_of(*(values[:, samples].flatten(0, 1) for values in outputs))


def test_what_is_packed_is_unpacked_under_its_name(outputs):
    sums, _ = part(outputs, slice(None))
    packed = sums.pack()
    assert packed.shape == (2 * K + 7 + C,)
    again = sums.unpack(packed.clone())
    for field in dataclasses.fields(StepSums):
        assert torch.equal(getattr(again, field.name), getattr(sums, field.name)), field.name


def test_parts_give_the_statistics_of_the_whole_batch(outputs):
    whole = gather_statistics([part(outputs, slice(None))], SINGLE_PROCESS)
    halves = gather_statistics([part(outputs, slice(0, 2)), part(outputs, slice(2, 4))], SINGLE_PROCESS)
    torch.testing.assert_close(halves.mean_logits, whole.mean_logits)
    torch.testing.assert_close(halves.mean_logits, outputs[1].mean((0, 1)))
    torch.testing.assert_close(halves.stage_losses, whole.stage_losses)
    for name in whole.health._fields:
        torch.testing.assert_close(getattr(halves.health, name), getattr(whole.health, name))


def test_health_of_known_outputs():
    """Two samples with outputs of their own, on whose views the teacher agrees; a third pair of views disagrees."""
    teacher = torch.full((2, 3, 3), -100.0)
    for view, tops in enumerate(((0, 1, 2), (0, 1, 0))):
        teacher[view, range(3), tops] = 100.0
    student, features = torch.zeros(9, 3), torch.zeros(6, 2)
    terms = deep_distillation_loss([student] * 4, teacher.flatten(0, 1), torch.zeros(3), 1.0, 0.1)
    output = TeacherOutput(teacher.flatten(0, 1), features, Places(None, None))
    sums = StepSums.of_part([terms.total], terms, output)
    batch = gather_statistics([(sums, features)], SINGLE_PROCESS)
    assert batch.health.entropy.item() == pytest.approx(0, abs=1e-6)
    assert batch.health.view_agreement.item() == pytest.approx(2 / 3)
    frequencies = torch.tensor([3 / 6, 2 / 6, 1 / 6])
    assert batch.health.mutual_information.item() == pytest.approx(torch.special.entr(frequencies).sum().item())
