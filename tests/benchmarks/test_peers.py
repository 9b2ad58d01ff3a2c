"""The peers learn one batch, and resume exactly, and cost what they should."""

import math

import pytest
import torch
from few_labels.arms import PRETRAININGS
from few_labels.peers.dira import DiRA
from few_labels.peers.masked_autoencoder import BLOCK, MaskedAutoencoder, draw_mask
from few_labels.peers.moco_v3 import MoCoV3
from few_labels.peers.training import phase_and_rates, pretrain_peer
from few_labels.pretrain import flops_per_sample, study_config

from nnunetv2_cads.encoder_file.read import compare_encoder_state, read_encoder_file
from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.config import PretrainConfig
from pretraining.method.schedules import rates


@pytest.mark.parametrize("method", [MoCoV3, MaskedAutoencoder, DiRA])
def test_the_loss_of_one_batch_goes_down_and_reaches_the_encoder(method):
    torch.manual_seed(0)
    peer = method()
    views = torch.rand(2, 3, 1, 16, 32, 32).unbind()
    before = {name: p.detach().clone() for name, p in peer.encoder.named_parameters() if "_2D" not in name}
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        torch.manual_seed(0)
        loss = peer.loss(*views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        peer.after_step(0.9)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    unmoved = [name for name, p in peer.encoder.named_parameters() if name in before and torch.equal(p, before[name])]
    assert not unmoved


def test_a_stopped_run_resumes_to_the_same_encoder(small_torso_store, tmp_path, monkeypatch):
    config = PretrainConfig().replace(
        crop_size=(16, 32, 32), uniform_sampling=False, batch_size=1, epochs=2, epoch_samples=1, warmup_epochs=0,
        intensity="none", num_workers=0,
    )  # fmt: skip

    def run(output):
        torch.manual_seed(0)
        peer = MaskedAutoencoder()
        return read_encoder_file(pretrain_peer(peer, small_torso_store, config, output)).state

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            MaskedAutoencoder, "after_step", lambda self, momentum: stop_after_first_epoch(tmp_path / "parts")
        )
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts")
    parts = run(tmp_path / "parts")
    assert compare_encoder_state(PVTv2Encoder(), parts).missing == []
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def stop_after_first_epoch(output):
    """Stop the way Ctrl-C does, once an epoch has been saved."""
    if (output / "checkpoint_latest.pth").exists():
        raise KeyboardInterrupt


def test_each_phase_has_the_schedules_of_a_run_and_the_first_one_warms_up():
    config = PretrainConfig().replace(epochs=10, warmup_epochs=2)
    for step in range(60):  # of ten epochs with six steps each
        phase, now = phase_and_rates(config, step, 6, (1.0,))
        alone = rates(config, step, 6)
        assert phase == 0
        assert (now.lr, now.weight_decay, now.teacher_momentum) == (
            alone.lr,
            alone.weight_decay,
            alone.teacher_momentum,
        )
        phase, now = phase_and_rates(config, step, 6, (0.75, 0.25))
        first, length, warmup = (0, 45, 12) if step < 45 else (45, 15, 0)
        assert phase == (step >= 45)
        assert now.teacher_momentum == pytest.approx(1 - 0.004 * falling(step - first, length))
        shape = falling(step - first - warmup, length - warmup) if step - first >= warmup else (step - first) / 11
        end = config.optim.min_lr if step - first >= warmup else 0.0
        assert now.lr == pytest.approx(end + (config.peak_lr - end) * shape)


def falling(step, steps):
    """A half cosine from 1 to 0."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def test_the_momentum_encoder_follows_without_a_gradient():
    torch.manual_seed(0)
    peer = MoCoV3()
    with torch.no_grad():
        for p in peer.encoder.parameters():
            p.add_(1.0)
    own, source = next(peer.momentum_encoder.parameters()), next(peer.encoder.parameters())
    expected = own + 0.25 * (source - own)
    peer.after_step(0.75)
    torch.testing.assert_close(own, expected.detach())
    assert not own.requires_grad


def test_the_mask_covers_three_quarters_in_whole_blocks():
    mask = draw_mask((5, 1, 16, 64, 64))
    blocks = mask.unflatten(2, (-1, BLOCK[0])).unflatten(4, (-1, BLOCK[1])).unflatten(6, (-1, BLOCK[2]))
    assert set(blocks.float().mean((3, 5, 7)).unique().tolist()) == {0.0, 1.0}
    assert mask.float().mean((1, 2, 3, 4)).tolist() == [0.75] * 5
    assert draw_mask((5, 1, 16, 64, 70)).shape == (5, 1, 16, 64, 70)


@pytest.mark.parametrize("name", ["MoCo_v3", "MAE", "DiRA", "CADS_no_sampling_short"])
def test_equal_flops_are_those_of_cads(name):
    settings = {"epochs": 100, "warmup_epochs": 10, "epoch_samples": 32}
    flops, epochs, warmup = {}, {}, {}
    for key in (name, "CADS"):
        config = study_config(PRETRAININGS[key], settings)
        epochs[key], warmup[key] = config.optim.epochs, config.optim.warmup_epochs
        flops[key] = flops_per_sample(PRETRAININGS[key].method, config) * epochs[key]
    assert epochs["CADS"] == 100 and warmup["CADS"] == 10
    assert flops[name] == pytest.approx(flops["CADS"], abs=flops[name] / epochs[name] / 2)  # to the nearest epoch
    assert warmup[name] == pytest.approx(epochs[name] / 10, abs=1)
    assert study_config(PRETRAININGS[name], settings | {"warmup_epochs": 1}).optim.warmup_epochs == 1
