"""`cads_pretrain --plain` as a user runs it: it trains, writes an encoder for fine-tuning, and refuses the rest."""

import json

import pytest
import torch
from tiny_run import TINY_RUN

from nnunetv2_cads.encoder_file.read import load_encoder, read_encoder_file
from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.plain.model import Encoder
from pretraining.train import main as pretrain

PLAIN_RUN = [*TINY_RUN, "--encoder-size=b1"]


@pytest.fixture(scope="module")
def run(small_store, tmp_path_factory):
    """A finished run of two epochs of two steps."""
    output = tmp_path_factory.mktemp("runs") / "plain"
    assert pretrain([str(small_store), str(output), "--plain", *PLAIN_RUN, "--epochs=2"]) == 0
    return output


def test_a_run_writes_its_settings_a_line_per_epoch_and_an_encoder(run):
    assert {path.name for path in run.iterdir()} == {"config.json", "metrics.jsonl", "cads_encoder.pth"}
    assert json.loads((run / "config.json").read_text())["optim"]["batch_size"] == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in lines] == [(1, 0), (3, 1)]
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line[f"loss_stage{stage}"] for stage in range(1, 5)) / 4)
        assert 0 < line["loss"] < 20 and line["samples_per_second"] > 0


def test_fine_tuning_takes_the_encoder_and_training_has_moved_it(run):
    encoder = read_encoder_file(run / "cads_encoder.pth")
    assert len(load_encoder(PVTv2Encoder(), encoder.state).matched) == 204
    torch.manual_seed(0)
    begun = Encoder(drop_path_rate=0.1).state_dict()
    assert all(not torch.equal(begun[key], value) for key, value in encoder.state.items() if value.dim() > 1)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--c"], "--plain has neither --c nor --estimate"),
        (["--encoder-size=b0"], "--plain has no --encoder-size; leave it out, or give its default (--encoder-size b1)"),
        (["--preset=demo"], "--plain is CADS itself: give --preset published or cads"),
        (["--amp=bf16"], "--plain has no --amp; leave it out, or give its default (--amp none)"),
        (["--stage-weights", "0", "0", "0", "1"], "--plain has no --stage-weights"),
        (["--device=cuda:7"], "device 'cuda:7' cannot be used"),
    ],
)
def test_what_plain_cads_does_not_have_is_refused(small_store, tmp_path, capfd, flags, sentence):
    assert pretrain([str(small_store), str(tmp_path / "run"), "--plain", *PLAIN_RUN, *flags]) == 2
    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(small_store, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pretrain([str(small_store), str(tmp_path / "run"), "--plain", *PLAIN_RUN]) == 2
    assert "start it without torchrun" in capfd.readouterr().err


def test_a_folder_with_a_run_is_not_overwritten(small_store, run, capfd):
    assert pretrain([str(small_store), str(run), "--plain", *PLAIN_RUN]) == 2
    assert "exists already and is not empty" in capfd.readouterr().err
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
