"""DiRA: its losses are the published formulas, each part trains what it must and nothing else, views are distorted."""

import collections
import copy
import io
import itertools

import numpy as np
import pytest
import torch
from few_labels import arms
from few_labels.finetune import load_decoder
from few_labels.head_and_neck import pretrainings
from few_labels.peers import dira, distortions
from few_labels.peers.dira import DiRA
from few_labels.peers.discriminator import Discriminator
from few_labels.peers.distortions import corrupt, cut_out, cut_out_around, exchange
from few_labels.peers.training import PeerTrainer, pretrain_peer
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_cads.network_architecture import PVTUNet
from pretraining.config import PretrainConfig
from pretraining.run.estimate import forward_flops

SHAPE = (2, 1, 16, 32, 32)
CONFIG = PretrainConfig().replace(
    crop_size=SHAPE[2:], uniform_sampling=False, batch_size=2, epochs=4, epoch_samples=2, warmup_epochs=0,
    intensity="none", num_workers=0,
)  # fmt: skip


@pytest.fixture
def views():
    """Two views (B, 1, D, H, W) in [-1, 1]."""
    return (torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1).unbind()


@pytest.fixture
def peer():
    torch.manual_seed(0)
    return DiRA()


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed(module, before):
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


def info_nce(queries, keys):
    """Of queries whose own key has the same number, one pair after the other."""
    cosines = [[torch.cosine_similarity(q, k, dim=0) / 0.2 for k in keys] for q in queries]
    losses = [torch.stack(row).exp().sum().log() - row[i] for i, row in enumerate(cosines)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("phase", [0, 1])
def test_the_loss_is_the_published_sum_on_what_the_views_were(phase, peer, views, monkeypatch):
    """Of the first view alone is it asked to be restored, as it was before it was corrupted."""
    peer.eval()  # neither stochastic depth nor statistics of batches
    monkeypatch.setattr(dira, "corrupt", lambda view, rng: view.flip(4) * 0.5)
    seen = [view.flip(4) * 0.5 for view in views]
    moco = peer.moco
    with torch.no_grad():
        queries = [moco.predictor(moco.projector(moco.encoder(v)[-1].mean((2, 3, 4)))) for v in seen]
        keys = [moco.momentum_projector(moco.momentum_encoder(v)[-1].mean((2, 3, 4))) for v in seen]
        restored = 1 / (1 + torch.exp(-peer.decoder(moco.encoder(seen[0]), SHAPE[2:])))
        expected = (info_nce(queries[0], keys[1]) + info_nce(queries[1], keys[0])) / 2
        expected = expected + 10 * ((restored - (views[0] / 2 + 0.5)) ** 2).mean()
        adversarial = 0.001 * ((peer.discriminator(restored) - 1) ** 2).mean()
        peer.phase = phase
        found = peer.loss(*views)
        peer.phase = 0
        torch.testing.assert_close(found, expected + phase * adversarial, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found - peer.loss(*views), phase * adversarial, rtol=1e-2, atol=1e-7)


def test_the_discriminator_takes_adam_steps_on_least_squares_and_nothing_else_moves(peer, views):
    plain, before = copy.deepcopy(peer.discriminator.layers).requires_grad_(True), weights(peer)
    peer.phase = 1
    peer.loss(*views).backward()
    assert all(p.grad is None for p in peer.discriminator.parameters())
    restored, sound = (x.clone() for x in peer._judged)
    torch.testing.assert_close(sound, (views[0] + 1) / 2)
    assert not restored.requires_grad and restored.min() > 0 and restored.max() < 1
    gradients = {name: p.grad.clone() for name, p in peer.named_parameters() if p.grad is not None}
    peer.after_step(1.0)
    peer.discriminator.learn(sound, restored)  # the other way round: a second gradient, for Adam's momenta

    optimizer = torch.optim.Adam(plain.parameters(), lr=2e-4, betas=(0.5, 0.999))
    for fake, real in ((restored, sound), (sound, restored)):
        optimizer.zero_grad()
        (0.5 * ((plain(real) - 1) ** 2).mean() + 0.5 * (plain(fake) ** 2).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(peer.discriminator.layers.state_dict(), plain.state_dict())
    names = changed(peer, before)
    assert names == {name for name in before if name.startswith("discriminator.")}
    for name, p in peer.named_parameters():
        assert (p.grad is None) == (name not in gradients)
        assert p.grad is None or torch.equal(p.grad, gradients[name])


def test_the_discriminator_learns_to_tell_two_kinds_of_views(views):
    torch.manual_seed(0)
    discriminator, sound, restored = Discriminator(), views[0].abs(), torch.full(SHAPE, 0.5)
    for _ in range(10):
        discriminator.learn(restored, sound)
    assert discriminator(sound).mean() > discriminator(restored).mean() + 0.5
    assert discriminator(torch.zeros(1, 1, 16, 64, 64)).shape == (1, 1, 4, 8, 8)  # an eighth in the plane, as published


def test_each_phase_trains_what_it_must(peer, views):
    """Three steps of four without the discriminator, which the shared optimizer never has."""
    trainer = PeerTrainer(peer, CONFIG, steps_per_epoch=1)
    shared = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not shared & {id(p) for p in peer.discriminator.parameters()}
    for phase in (0, 0, 0, 1):
        before = weights(peer)
        trainer.train_step(*views)
        assert peer.phase == phase
        parts = {name.split(".")[0] for name in changed(peer, before)}
        assert parts == ({"moco", "decoder", "discriminator"} if phase else {"moco", "decoder"})
    momentum = {name for name, _ in peer.named_parameters() if ".momentum_" in name}
    assert momentum and all(p.grad is None and not p.requires_grad for n, p in peer.named_parameters() if n in momentum)
    own, source = (encoder.norm4.weight for encoder in (peer.moco.momentum_encoder, peer.moco.encoder))
    assert not torch.equal(own, source) and not torch.equal(own, torch.ones_like(own))


def test_fooling_the_discriminator_reaches_decoder_and_encoder(peer, views):
    restored = peer.decoder(peer.encoder(views[0]), SHAPE[2:]).sigmoid()
    peer.discriminator.loss_of_fooling(restored).backward()
    reached = {name.split(".")[1] for name, p in peer.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"encoder", "blocks", "upsamplings"} <= reached
    assert all(p.grad is None for p in peer.discriminator.parameters())


def test_a_saved_state_resumes_to_the_same_weights_within_the_second_phase(peer, views, monkeypatch):
    monkeypatch.setattr(DiRA, "phases", (0.25, 0.75))
    trainer, file = PeerTrainer(peer, CONFIG, steps_per_epoch=1), io.BytesIO()
    for _ in range(2):
        trainer.train_step(*views)
    torch.save(trainer.state(), file)
    file.seek(0)
    other = PeerTrainer(DiRA(), CONFIG, steps_per_epoch=1)
    other.load(torch.load(file, weights_only=True))
    assert trainer.train_step(*views) == other.train_step(*views)
    torch.testing.assert_close(other.state(), trainer.state(), rtol=0, atol=0)


def test_a_finished_run_hands_on_its_decoder_but_for_the_head(small_torso_store, tmp_path):
    torch.manual_seed(0)
    peer, config = DiRA(), CONFIG.replace(epochs=1)
    pretrain_peer(peer, small_torso_store, config, tmp_path)
    decoder = PVTUNet(1, 3).decoder
    before = weights(decoder)
    load_decoder(decoder, tmp_path / "checkpoint_latest.pth")
    for name, value in decoder.state_dict().items():
        expected = before[name] if name.startswith("seg_layers.") else peer.decoder.state_dict()[name]
        assert torch.equal(value, expected), name
    assert not changed(decoder, before) & {name for name in before if name.startswith("seg_layers.")}


def test_flops_are_those_of_a_step(peer, views):
    """PyTorch counts the discriminator's in a real step; what else is run counts thrice, the momentum half once."""
    restored = torch.rand(SHAPE, requires_grad=True)
    with FlopCounterMode(display=False) as of_discriminator:
        peer.discriminator.loss_of_fooling(restored).backward()
        peer.discriminator.learn(restored.detach(), views[0])
    whole, momentum = forward_flops(peer.loss, *views), forward_flops(peer.moco.momentum_encoder, torch.cat(views))
    expected = 3 * whole - 2 * momentum + 0.25 * of_discriminator.get_total_flops()
    assert peer.step_flops(*views) == pytest.approx(expected, rel=0.002)


def test_runs_leave_the_augmentation_to_the_method():
    """The target would be augmented, too; and whole voxels are restored."""
    for settings in (arms.PRETRAININGS["DiRA"].changes, pretrainings.PRETRAININGS["dira"].settings):
        assert (settings["intensity"], settings["uniform_sampling"]) == ("none", False)


def test_a_view_is_cut_out_from_exchanged_or_left_alone_as_often_as_published(monkeypatch):
    rng, calls = np.random.default_rng(0), collections.Counter()
    table = [(p, f and (lambda view, rng, name=f.__name__: calls.update([name]))) for p, f in distortions.DISTORTIONS]
    monkeypatch.setattr(distortions, "DISTORTIONS", table)
    monkeypatch.setitem(distortions.INTENSITY_AUGMENTATIONS, "weak", (lambda x, rng, keep: keep(x), None))
    corrupt(torch.zeros(4000, 1, 1, 1, 1), rng)
    expected = {"cut_out": 0.30, "cut_out_around": 0.05, "exchange": 0.30}
    assert {name: count / 4000 for name, count in calls.items()} == pytest.approx(expected, abs=0.02)


def test_boxes_have_the_published_shares_of_a_view():
    rng = np.random.default_rng(0)
    shape = (16, 64, 128)
    for limits, least, most in (((10, 70), (3, 3, 6), (16, 20, 40)), ((154, 174), (16, 44, 88), (16, 50, 99))):
        several = [distortions.draw_boxes(shape, limits, rng) for _ in range(400)]
        edges = np.array([[s.stop - s.start for s in box] for box in itertools.chain(*several)])
        assert (edges.min(0) == least).all() and (edges.max(0) == most).all()
        assert all(s.start >= 0 and s.stop <= n for box in several[0] for s, n in zip(box, shape, strict=True))
        assert np.mean([len(boxes) for boxes in several]) == pytest.approx((1 - 0.9**10) / 0.1, abs=0.5)
        assert {len(boxes) for boxes in several} == set(range(1, 11))


@pytest.mark.parametrize(("distort", "inverse"), [(cut_out, False), (cut_out_around, True)])
def test_what_is_cut_out_are_boxes_or_all_but_boxes(distort, inverse, monkeypatch):
    monkeypatch.setattr(distortions, "MOST_BOXES", 1)
    for seed in range(10):
        sound = torch.rand(16, 48, 48)
        view = sound.clone()
        distort(view, np.random.default_rng(seed))
        black = view != sound
        assert (view[black] == -1).all()
        inside = (~black if inverse else black).nonzero()
        assert len(inside) == (inside.amax(0) - inside.amin(0) + 1).prod()


def test_boxes_exchange_what_they_hold(monkeypatch):
    monkeypatch.setattr(distortions, "EXCHANGES", 1)
    for seed in range(10):  # in none of which the two boxes meet
        sound = torch.rand(16, 48, 48)
        view = sound.clone()
        exchange(view, np.random.default_rng(seed))
        assert torch.equal(view.flatten().sort().values, sound.flatten().sort().values)
        assert 2 * 2**3 <= (view != sound).sum() <= 2 * 3**3


def test_views_are_corrupted_in_a_copy_by_their_seed(views):
    before = views[0].clone()
    first, second = (corrupt(views[0], np.random.default_rng(0)) for _ in range(2))
    assert torch.equal(views[0], before)
    assert torch.equal(first, second)
    assert first.shape == before.shape and not torch.isclose(first, before).all(dim=(1, 2, 3, 4)).any()
