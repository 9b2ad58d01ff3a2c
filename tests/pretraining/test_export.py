"""`cads_export` from runs, from the published layout, and on what holds no encoder."""

import shutil

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from safetensors.torch import load_file

from nnunetv2_cads.encoder_file.read import load_encoder, read_encoder_file
from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining import __version__
from pretraining.export import main as export
from pretraining.train import main as pretrain


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return PVTv2Encoder(drop_path_rate=0.0).eval()


@pytest.fixture
def published(encoder, tmp_path):
    """A file in the published layout."""
    state = encoder.state_dict()
    content = {
        "teacher": {**{f"backbone.{k}": v for k, v in state.items()}, "head.mlp.0.weight": torch.zeros(4, 512)},
        "student": {f"module.backbone.{k}": v for k, v in state.items()},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 150,
        "cads_loss": {"center": torch.zeros(1, 8)},
    }
    path = tmp_path / "published.pth"
    torch.save(content, path)
    return path, content


def test_published_layout_gives_the_same_encoder(encoder, published, tmp_path, capfd):
    out = tmp_path / "cads_encoder.pth"
    assert export([str(published[0]), str(out)]) == 0
    assert "204 matched, 0 missing, 0 unexpected, 0 of another shape; 1 keys of the head" in capfd.readouterr().err
    read = read_encoder_file(out)
    assert read.record.to_file().items() >= {"architecture": "PVTv2-b1", "source": "published layout"}.items()
    loaded = PVTv2Encoder(drop_path_rate=0.0).eval()
    assert len(load_encoder(loaded, read.state).matched) == 204
    x = torch.randn(1, 1, 16, 48, 48)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(loaded(x), encoder(x), strict=True))


@pytest.fixture(scope="module")
def run(small_store, tmp_path_factory):
    """A finished run of one step."""
    output = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--preset=cads", "--batch-size=2", "--head-out-dim=32", "--head-hidden-dim=32", "--epochs=1"]
    assert pretrain([str(small_store), str(output), *flags, "--epoch-samples=2", "--device=cpu"]) == 0
    return output


def test_a_run_and_its_checkpoint_give_the_encoder_that_the_run_wrote(run, tmp_path):
    written = read_encoder_file(run / "cads_encoder.pth")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(run / "checkpoint_latest.pth", unfinished)
    for index, source in enumerate((run, run / "checkpoint_latest.pth", unfinished)):
        out = tmp_path / f"{index}.pth"
        assert export([str(source), str(out)]) == 0
        read = read_encoder_file(out)
        assert read.state.keys() == written.state.keys()
        assert all(torch.equal(value, written.state[key]) for key, value in read.state.items())
        assert read.record == written.record.with_notes(exported_by=__version__)


def test_what_a_killed_export_left_is_removed_by_the_next_of_the_same_name(published, tmp_path):
    left = [tmp_path / f".{name}.0123abcd.tmp" for name in ("encoder.pth", "other.pth")]
    for file in left:
        file.write_bytes(b"half")
    assert export([str(published[0]), str(tmp_path / "encoder.pth")]) == 0
    assert [file.exists() for file in left] == [False, True]


def test_the_suffix_chooses_safetensors_which_export_reads_back(encoder, published, tmp_path):
    files = [tmp_path / name for name in ("a.pth", "b.safetensors", "c.pth")]
    for source, out in zip([published[0], *files], files, strict=False):
        assert export([str(source), str(out)]) == 0
    assert set(load_file(files[1])) == {f"backbone.{key}" for key in encoder.state_dict()}
    first, *others = [read_encoder_file(file) for file in files]
    for other in others:
        assert other.record == first.record
        assert all(torch.equal(other.state[key], value) for key, value in first.state.items())


def test_nnssls_format_tells_nnunet_how_to_build_and_fill_the_network(encoder, published, run, tmp_path):
    for source, patch_size in ((published[0], [15, 29, 29]), (run, [16, 64, 64])):
        out = tmp_path / f"{source.name}_nnssl.pth"
        assert export([str(source), str(out), "--format", "nnssl"]) == 0
        content = torch.load(out, weights_only=True)
        plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
        architecture = plan["architecture_plans"]
        network = get_network_from_plans(
            architecture["arch_class_name"], architecture["arch_kwargs"], architecture["arch_kwargs_requiring_import"],
            plan["pretrain_num_input_channels"], 3, deep_supervision=False,
        )  # fmt: skip
        for name in ("key_to_encoder", "key_to_stem", "key_to_lpe"):
            assert getattr(network, name) == plan[name]
        prefix = plan["key_to_encoder"] + "."
        of_encoder = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        network.get_submodule(plan["key_to_encoder"]).load_state_dict(of_encoder, strict=True)
        assert any(key.startswith(plan["key_to_stem"] + ".") for key in weights)
        first_convolution = network.get_submodule(plan["keys_to_in_proj"][0])
        assert first_convolution.in_channels == 1 and plan["keys_to_in_proj"][0] + ".weight" in weights
        (configuration,) = plan["pretrain_plan"]["configurations"].values()
        assert configuration == {"spacing": [1.0, 1.0, 1.0], "patch_size": patch_size}
        assert plan["recommended_downstream_patchsize"] == patch_size
        assert content["citations"][0]["apa_citations"][0].startswith("Ye, Y.")


def test_a_file_in_nnssls_format_is_read_like_any_other_but_of_another_network(published, run, tmp_path, capfd):
    nnssl, back = tmp_path / "nnssl.pth", tmp_path / "back.pth"
    assert export([str(run), str(nnssl), "--format", "nnssl"]) == export([str(nnssl), str(back)]) == 0
    before, after = read_encoder_file(run / "cads_encoder.pth"), read_encoder_file(back)
    assert after.state.keys() == {key for key in before.state if "_2D" not in key} and after.record.spacing_mm
    assert all(torch.equal(value, before.state[key]) for key, value in after.state.items())
    content = torch.load(nnssl, weights_only=True)
    content["nnssl_adaptation_plan"]["architecture_plans"]["arch_class_name"] = "ResEncL"
    torch.save(content, tmp_path / "other.pth")
    assert export([str(tmp_path / "other.pth"), str(tmp_path / "out.pth")]) == 2
    assert "is a checkpoint of nnssl's for ResEncL, not for PVTUNet" in capfd.readouterr().err
    assert export([str(run), str(tmp_path / "out.safetensors"), "--format", "nnssl"]) == 2
    assert "nnssl's format has no .safetensors form" in capfd.readouterr().err


def test_transposing_in_plane_exchanges_the_axes_of_every_map(encoder, published, tmp_path):
    out = tmp_path / "transposed.pth"
    assert export([str(published[0]), str(out), "--transpose-in-plane"]) == 0
    read = read_encoder_file(out)
    assert read.record.notes["transposed_in_plane"] is True
    turned = PVTv2Encoder(drop_path_rate=0.0).eval()
    load_encoder(turned, read.state)
    for x in (torch.randn(1, 1, 16, 48, 64), torch.randn(1, 1, 64, 96)):
        with torch.no_grad():
            for before, after in zip(encoder(x), turned(x.transpose(-1, -2)), strict=True):
                torch.testing.assert_close(after, before.transpose(-1, -2), rtol=1e-4, atol=1e-4)
    again = tmp_path / "back.pth"
    assert export([str(out), str(again), "--transpose-in-plane"]) == 0
    back = read_encoder_file(again)
    assert back.record.notes["transposed_in_plane"] is False
    assert all(torch.equal(back.state[k], v) for k, v in encoder.state_dict().items())


def test_missing_and_unexpected_keys_are_reported(published, tmp_path, capfd):
    path, content = published
    del content["teacher"]["backbone.norm4.weight"]
    content["teacher"]["backbone.extra"] = torch.zeros(3)
    torch.save(content, path)
    assert export([str(path), str(tmp_path / "out.pth")]) == 1
    report = capfd.readouterr().err
    assert "203 matched, 1 missing (norm4.weight), 1 unexpected (extra)" in report
    assert "missing: norm4.weight" in report and "unexpected: extra" in report


def test_an_existing_file_is_not_overwritten(published, tmp_path, capfd):
    out = tmp_path / "cads_encoder.pth"
    out.write_text("mine")
    assert export([str(published[0]), str(out)]) == 2
    assert export([str(published[0]), str(tmp_path)]) == 2
    assert "is not overwritten" in capfd.readouterr().err
    assert out.read_text() == "mine"


def test_another_suffix_is_refused_before_anything_is_made(published, tmp_path, capfd):
    assert export([str(published[0]), str(tmp_path / "new" / "encoder.onnx")]) == 2
    assert "must end in .pth or .safetensors" in capfd.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is not a checkpoint of plain tensors, or is damaged"),
        (b"\x00" * 1000, "is not a checkpoint of plain tensors, or is damaged"),
        ({"model": {}}, "it has no 'teacher' entry"),
        ([1, 2], "it has no 'teacher' entry"),
        ({"teacher": {"head.mlp.0.weight": torch.zeros(2)}}, "there is no encoder in it"),
        ({"teacher": {"backbone.norm1.weight": torch.zeros(3)}}, "do not fit the CADS encoder"),
        ({"teacher": {"backbone.other": torch.zeros(3)}}, "do not fit the CADS encoder"),
    ],
)
def test_what_holds_no_encoder_is_refused_with_its_name(tmp_path, capfd, content, part):
    path = tmp_path / "some.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert export([str(path), str(tmp_path / "out.pth")]) == 2
    message = capfd.readouterr().err
    assert str(path) in message and part in message
    assert not (tmp_path / "out.pth").exists()


def test_folders_without_a_run_and_missing_files_are_named(tmp_path, capfd):
    assert export([str(tmp_path), str(tmp_path / "out.pth")]) == 2
    assert "has neither cads_encoder.pth nor checkpoint_latest.pth" in capfd.readouterr().err
    assert export([str(tmp_path / "absent.pth"), str(tmp_path / "out.pth")]) == 2
    assert "no such file or folder" in capfd.readouterr().err
