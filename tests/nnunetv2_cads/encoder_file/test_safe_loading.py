"""Files of tensors from anywhere: what would run code, is damaged, or is no ordinary tensor is refused in words."""

import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunetv2_cads.encoder_file.read import EncoderFileError, read_encoder_file
from nnunetv2_cads.encoder_file.record import EncoderRecord
from nnunetv2_cads.encoder_file.safe_loading import safetensors_bytes

STATE = {"backbone.a": torch.arange(6.0).reshape(2, 3), "backbone.b": torch.full((300,), 7.0)}
RECORD = {"format_version": 1, "spacing_mm": [1.0, 1.0, 1.0], "architecture": "PVTv2-b1"}
many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, teacher=STATE) -> bytes:
    if path.suffix == ".safetensors":
        path.write_bytes(safetensors_bytes(teacher, {"cads": json.dumps(RECORD)}))
    else:
        torch.save({"teacher": teacher, "cads": RECORD}, path)
    return path.read_bytes()


def refusal(path: Path) -> str:
    with pytest.raises(EncoderFileError) as error:
        read_encoder_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_formats_give_back_what_was_written(tmp_path, suffix):
    path = tmp_path / f"encoder{suffix}"
    write(path)
    content = read_encoder_file(path)
    assert content.record.to_file() == RECORD
    assert content.state.keys() == {"a", "b"}
    assert all(torch.equal(value, STATE[f"backbone.{key}"]) for key, value in content.state.items())


@many
@given(data=st.data())
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_refused_or_tells_the_same(tmp_path, suffix, data):
    """A bit flipped, or the end cut off, anywhere: the tensors that come back are those that were written."""
    path = tmp_path / f"encoder{suffix}"
    content = bytearray(write(path))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        state = read_encoder_file(path).state
    except EncoderFileError as error:
        assert str(path) in str(error)
    else:
        assert all(torch.equal(value, STATE[f"backbone.{key}"]) for key, value in state.items())


def with_pickle(path: Path, change) -> None:
    """Change the pickle in a file of torch.save's, and write the archive anew with sums that match."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


@many
@given(edits=st.lists(st.tuples(st.integers(0, 10**4), st.binary(min_size=1, max_size=3)), min_size=1, max_size=3))
def test_a_crafted_pickle_is_refused_or_harmless(tmp_path, edits):
    path = tmp_path / "encoder.pth"
    write(path)

    def change(content: bytes) -> bytes:
        content = bytearray(content)
        for offset, new in edits:
            offset %= len(content)
            content[offset : offset + len(new)] = new
        return bytes(content)

    with_pickle(path, change)
    try:
        state = read_encoder_file(path).state
    except EncoderFileError as error:
        assert str(path) in str(error)
    else:
        assert all(type(value) in (torch.Tensor, torch.nn.Parameter) for value in state.values())


class RunsCode:
    """What a hostile file has in place of a tensor."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("place", ["teacher", "beside"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, place):
    path, owned = tmp_path / "encoder.pth", tmp_path / "owned"
    hostile = {"teacher": {**STATE, "backbone.c": RunsCode(owned)}} if place == "teacher" else {"x": RunsCode(owned)}
    torch.save({"teacher": STATE, **hostile}, path)
    assert "can run code" in refusal(path)
    assert not owned.exists()
    torch.load(path, weights_only=False)  # so the file is what it says: loaded carelessly, it does run
    assert owned.exists()


def test_a_bare_pickle_and_one_named_safetensors_are_refused(tmp_path):
    for name in ("encoder.pth", "encoder.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps({"teacher": {"backbone.a": RunsCode(tmp_path / "owned")}}))
        refusal(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (torch.zeros(1).expand(10**6, 10**6), "holds less"),
        (torch.zeros(3, dtype=torch.int64), "torch.int64"),
        (torch.zeros(3, dtype=torch.complex64), "torch.complex64"),
        (torch.empty(10**6, 10**6, device="meta"), "meta"),
        (torch.zeros(3, 3).to_sparse(), "sparse"),
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.tensor([1.0, float("inf")]), "NaN or infinite"),
        ([1.0, 2.0], "no tensor"),
    ],
)
def test_what_is_no_ordinary_tensor_is_refused(tmp_path, value, part):
    write(tmp_path / "encoder.pth", {**STATE, "backbone.c": value})
    assert part in refusal(tmp_path / "encoder.pth")


def test_compressed_members_are_refused_before_they_are_unpacked(tmp_path):
    path = tmp_path / "encoder.pth"
    write(path, {"backbone.a": torch.zeros(10**6)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 20_000
    assert "compressed" in refusal(path)


def test_records_show_plain_short_values_only(tmp_path):
    path = tmp_path / "encoder.pth"
    record = {
        **RECORD,
        "long": "x" * 1000,
        "escape": "\x1b[2J",
        "nested": [[1]],
        "many": [1] * 99,
        5: 5,
        "huge": 10**99,
    }
    torch.save({"teacher": STATE, "cads": record}, path)
    assert read_encoder_file(path).record.to_file() == RECORD


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("format_version", 99, "format_version = 99 .* 1 .a later one needs a later nnunetv2-cads"),
        ("format_version", True, "format_version = True"),
        ("architecture", "ResNet-50", "architecture = 'ResNet-50' .* one of 'PVTv2-b0' to 'PVTv2-b5' is needed"),
        ("axes", "zzz", "axes = 'zzz'"),
        ("spacing_mm", ["a", "b", "c"], "spacing_mm = .*'c'.* a list of three numbers above 0 is needed"),
        ("spacing_mm", [[1], [1], [1]], "spacing_mm = a value of type list"),
        ("spacing_mm", [1, 1, float("nan")], "spacing_mm"),
        ("clip_hu", [1024, -1024], "clip_hu"),
        ("clip_hu", [0, 10**400], "clip_hu = a value of type list"),
        ("intensity_scale_hu", 0, "intensity_scale_hu = 0"),
    ],
)
def test_a_malformed_record_is_refused(field, value, part, suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(RECORD, field, value)
    path = tmp_path / f"encoder{suffix}"
    write(path)
    assert re.search(part, refusal(path))


def test_a_record_that_is_no_json(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "encoder.safetensors"
    for text in ("{", "[" * 10**5, "[1]", json.dumps("x")):
        save_file(STATE, path, {"cads": text})
        assert read_encoder_file(path).record == EncoderRecord()


def test_files_of_before_pytorch_1_6_are_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"teacher": STATE}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "encoder.pth").write_bytes(buffer.getvalue())
    assert "not a checkpoint of plain tensors" in refusal(tmp_path / "encoder.pth")
