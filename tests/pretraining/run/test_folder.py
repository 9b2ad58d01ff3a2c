"""What a run may go on with: its config.json, and the flags that do not change what is computed."""

import json
from contextlib import ExitStack

import pytest

from pretraining.config import PRESETS, PretrainConfig
from pretraining.run.folder import prepare_output
from pretraining.system.errors import UserError


@pytest.fixture
def go_on(small_store, tmp_path):
    """Begin a run with some settings, and go on with others; `spoil` changes its config.json in between."""

    def run(before: dict, now: dict, spoil=lambda content: None) -> PretrainConfig:
        before = {**PRESETS["demo"], **before, "device": "cpu"}
        for settings, again in ((before, False), (now, True)):
            with ExitStack() as held:
                config = prepare_output(tmp_path / "run", settings, small_store, again, held)
            path = tmp_path / "run" / "config.json"
            content = json.loads(path.read_text())
            spoil(content)
            path.write_text(json.dumps(content))
        return config

    return run


def test_parts_of_a_batch_may_change_only_without_batch_normalisation(go_on, tmp_path):
    assert go_on({"head_batch_norm": False}, {"accumulate": 4}).run.accumulate == 4
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match=r"has accumulate = 1, not 4, and with head_batch_norm the parts of a batch"):
        go_on({}, {"accumulate": 4})
    (tmp_path / "run" / "config.json").unlink()
    assert go_on({"accumulate": 2}, {"accumulate": 2, "log_every": 7}).run.log_every == 7


def test_a_config_with_a_section_of_another_kind_is_named_with_its_file(go_on, tmp_path):
    with pytest.raises(UserError) as error:
        go_on({}, {}, spoil=lambda content: content.update(optim="none"))
    assert str(error.value) == (
        f"{tmp_path / 'run' / 'config.json'}: config section 'optim' must hold settings by name, got 'none'; "
        "restore the file"
    )


def test_a_config_of_before_a_setting_was_there_is_gone_on_with(go_on):
    def spoil(content):
        content["optim"].pop("adam_betas", None)
        content["optim"].pop("adam_eps", None)

    config = go_on({}, {}, spoil)
    assert config.optim.adam_betas == (0.9, 0.999) and config.optim.adam_eps == 1e-8
