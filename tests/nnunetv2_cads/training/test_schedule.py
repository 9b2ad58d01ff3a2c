import pytest
import torch
from torch import nn

from nnunetv2_cads.network_architecture import CoTr, PVTUNet
from nnunetv2_cads.training.base_trainer import TrainingCannotStart
from nnunetv2_cads.training.parameter_groups import parameter_groups
from nnunetv2_cads.training.schedule import EpochSchedule, sawtooth_factor, warmup_poly_factor
from nnunetv2_cads.training.trainer import nnUNetTrainerCADS


def test_the_factor_rises_linearly_and_falls_polynomially():
    factors = [warmup_poly_factor(epoch, num_epochs=10, warmup_epochs=4) for epoch in range(10)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == pytest.approx([(1 - i / 6) ** 0.9 for i in range(6)])


@pytest.mark.parametrize("num_epochs", [1, 2, 5, 8, 1000])
def test_no_epoch_is_wasted_on_a_rate_of_zero(num_epochs):
    factors = [warmup_poly_factor(epoch, num_epochs, warmup_epochs=1) for epoch in range(num_epochs)]
    assert all(0 < factor <= 1 for factor in factors)


def test_frozen_epochs_come_before_the_warm_up_and_the_rest_is_the_same_curve():
    frozen = [warmup_poly_factor(epoch, num_epochs=9, warmup_epochs=2, frozen_epochs=3) for epoch in range(9)]
    assert frozen[:3] == [0, 0, 0]
    assert frozen[3:] == [warmup_poly_factor(epoch, num_epochs=6, warmup_epochs=2) for epoch in range(6)]
    assert [warmup_poly_factor(epoch, 3, 1, frozen_epochs=5) for epoch in range(3)] == [0, 0, 0]


def test_a_sawtooth_is_two_curves_one_after_the_other():
    factors = [sawtooth_factor(epoch, num_epochs=20, warmup_epochs=2, first_epochs=6) for epoch in range(20)]
    assert factors[:6] == [warmup_poly_factor(epoch, 6, 2) for epoch in range(6)]
    assert factors[6:] == [warmup_poly_factor(epoch, 14, 2) for epoch in range(14)]
    assert [sawtooth_factor(epoch, 3, 1, first_epochs=1) for epoch in range(3)] == [1.0, 0.5, 1.0]
    assert [sawtooth_factor(epoch, 3, 1, first_epochs=0) for epoch in range(3)] == [
        warmup_poly_factor(epoch, 3, 1) for epoch in range(3)
    ]


def optimizer_and_schedule() -> tuple[torch.optim.Optimizer, EpochSchedule]:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    return optimizer, EpochSchedule(optimizer, [lambda epoch: warmup_poly_factor(epoch, 6, 2)] * 2)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_each_group_keeps_its_own_base_rate_whatever_was_called_before():
    optimizer, schedule = optimizer_and_schedule()
    for epoch in (3, 0, 5, 5):
        schedule.step(epoch)
        factor = warmup_poly_factor(epoch, 6, 2)
        assert rates(optimizer) == pytest.approx([factor, 0.1 * factor])


def test_a_resumed_run_has_the_rates_of_an_unbroken_one():
    unbroken, schedule = optimizer_and_schedule()
    seen = []
    for epoch in range(6):
        schedule.step(epoch)
        seen.append(rates(unbroken))
        if epoch == 2:
            saved = unbroken.state_dict()
    resumed, schedule = optimizer_and_schedule()
    resumed.load_state_dict(saved)
    for epoch in range(3, 6):
        schedule.step(epoch)
        assert rates(resumed) == seen[epoch]


def test_groups_hold_every_parameter_once_and_spare_norms_and_biases_from_decay():
    network = PVTUNet(1, 2)
    groups = parameter_groups(network, decoder_lr=1.0, encoder_lr=0.1, weight_decay=0.5)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in network.parameters())
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert groups[0]["lr"] == 1.0  # the group whose rate nnU-Net logs
    assert settings[id(network.encoder.block1[0].attn.q.weight)] == (0.1, 0.5)
    assert settings[id(network.encoder.block1[0].norm1.weight)] == (0.1, 0.0)
    assert settings[id(network.encoder.block1[0].attn.q.bias)] == (0.1, 0.0)
    assert settings[id(network.decoder.seg_layers[0].weight)] == (1.0, 0.5)
    assert settings[id(network.decoder.seg_layers[0].bias)] == (1.0, 0.0)


def test_rates_of_the_encoder_decay_from_its_last_stage_to_the_stem():
    network = PVTUNet(1, 2)
    groups = parameter_groups(network, 1.0, encoder_lr=0.1, weight_decay=0.5, encoder_lr_decay=0.5)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in network.parameters())
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    encoder = network.encoder
    assert [rates[id(stage[0].attn.q.weight)] for stage in (encoder.block4, encoder.block3, encoder.block2)] == (
        pytest.approx([0.1, 0.05, 0.025])
    )
    assert rates[id(next(encoder.patch_embed4.parameters()))] == pytest.approx(0.1)
    assert rates[id(encoder.norm1.weight)] == pytest.approx(0.0125)
    assert rates[id(next(encoder.patch_embed1.parameters()))] == pytest.approx(0.00625)
    assert rates[id(network.decoder.seg_layers[0].weight)] == 1.0


def test_groups_of_cotr_have_its_transformer_in_the_encoder():
    with torch.device("meta"):
        network = CoTr(1, 2)
    groups = parameter_groups(network, decoder_lr=1.0, encoder_lr=0.1, weight_decay=0.5)
    names = {id(p): name for name, p in network.named_parameters()}
    found = [[names[id(p)] for p in group["params"]] for group in groups]
    assert sorted(name for group in found for name in group) == sorted(names.values())
    for group, rate in zip(found, (1.0, 1.0, 0.1, 0.1), strict=True):
        assert {name.startswith(("backbone.", "encoder_Detrans.")) for name in group} == {rate == 0.1}


def test_the_trainer_gives_every_level_its_rates_and_the_decoder_its_sawtooth():
    trainer = object.__new__(nnUNetTrainerCADS)
    vars(trainer).update(trainer.defaults, network=PVTUNet(1, 2), num_epochs=8, sawtooth=True, encoder_lr_decay=0.5)
    with pytest.raises(TrainingCannotStart, match="set frozen_encoder_epochs"):
        trainer.configure_optimizers()
    trainer.frozen_encoder_epochs = 3
    optimizer, schedule = trainer.configure_optimizers()
    base = [5e-4, *(1e-4 * 0.5**steps for steps in range(5))]
    for epoch, (decoder, encoder) in {0: (0.5, 0.0), 1: (1.0, 0.0), 3: (0.5, 0.5), 4: (1.0, 1.0)}.items():
        schedule.step(epoch)
        factors = [decoder, *[encoder] * 5]
        assert rates(optimizer)[::2] == pytest.approx(
            [rate * factor for rate, factor in zip(base, factors, strict=True)]
        )
