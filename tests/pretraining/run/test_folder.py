"""What a run may resume with: its config.json, its store, and the flags that do not change what is computed."""

import json

import pytest
import torch

from pretraining.config import PretrainConfig
from pretraining.presets import PRESETS
from pretraining.run.folder import RunFolder
from pretraining.store.store import StoreSummary
from pretraining.system.errors import UserError

CPU = torch.device("cpu")
STORE = StoreSummary("ab" * 32, 1.0)


@pytest.fixture
def resume(tmp_path):
    """Begin a run with some settings, and resume it with others; `spoil` changes its config.json in between."""

    def run(before: dict, now: dict, spoil=lambda content: None, store=STORE) -> PretrainConfig:
        path = tmp_path / "run" / "config.json"
        with RunFolder(tmp_path / "run", {**PRESETS["cads"], **before}, resume=False).open(STORE, CPU):
            content = json.loads(path.read_text())
        spoil(content)
        path.write_text(json.dumps(content))
        with RunFolder(tmp_path / "run", now, resume=True).open(store, CPU) as config:
            return config

    return run


def test_parts_of_a_batch_may_change_only_without_batch_normalisation(resume, tmp_path):
    assert resume({"head_batch_norm": False}, {"accumulate": 4}).run.accumulate == 4
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match=r"has accumulate = 1, not 4, and with head_batch_norm the parts of a batch"):
        resume({}, {"accumulate": 4})
    (tmp_path / "run" / "config.json").unlink()
    assert resume({"accumulate": 2}, {"accumulate": 2, "log_every": 7}).run.log_every == 7


def test_another_preset_is_refused_on_resuming_with_what_to_leave_out(resume):
    with pytest.raises(UserError, match="leave the flag, and --preset, out to resume it"):
        resume({}, PRESETS["demo"])


def test_a_config_with_a_section_of_another_kind_is_named_with_its_file(resume, tmp_path):
    with pytest.raises(UserError) as error:
        resume({}, {}, spoil=lambda content: content.update(optim="none"))
    assert str(error.value) == (
        f"{tmp_path / 'run' / 'config.json'}: config section 'optim' must hold settings by name, got 'none'; "
        "restore the file"
    )


def test_a_run_begun_before_a_setting_was_there_resumes(resume):
    def spoil(content):
        content["optim"].pop("adam_betas", None)
        content["optim"].pop("adam_eps", None)

    config = resume({}, {}, spoil)
    assert config.optim.adam_betas == (0.9, 0.999) and config.optim.adam_eps == 1e-8


def test_a_store_of_another_fingerprint_is_refused_before_the_first_checkpoint(resume):
    with pytest.raises(UserError, match="begun with another store"):
        resume({}, {}, store=STORE._replace(fingerprint="cd" * 32))


def test_a_run_whose_config_names_no_store_resumes(resume):
    assert resume({}, {}, spoil=lambda content: content.pop("store")) == PretrainConfig().replace(**PRESETS["cads"])
