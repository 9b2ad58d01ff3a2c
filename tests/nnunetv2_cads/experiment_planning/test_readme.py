"""README's commands to plan and train raise none of our warnings."""

import re
import shlex
from pathlib import Path

import pytest

from nnunetv2_cads.experiment_planning import plan_and_preprocess

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
BLOCKS = README.split("## Your own data in five commands")[1].split("## ")[0].split("```bash")[1:]


@pytest.mark.parametrize("block", range(2), ids=["GPU", "CPU"])
def test_readmes_commands_raise_no_warning(block, nnunet_project, capfd):
    """On cases of 3 x 1.5 x 1.5 mm with an encoder that saw 1 mm; a trainer of four steps instead of the whole."""
    planned, trained = (
        shlex.split(re.search(f"^{name} .*", BLOCKS[block], re.M)[0], comments=True)[1:]
        for name in ("cads_plan_and_preprocess", "nnUNetv2_train")
    )
    encoder = {"nnUNet_cads_encoder": str(nnunet_project.encoder_file)}
    small = ["-overwrite_plans_name", f"Readme{block}", "-np", "1", "-npfp", "1", "--no_pbar"]
    if "-gpu_memory_target" in planned:  # a patch that a test can train
        planned[planned.index("-gpu_memory_target") + 1] = "0.8"
    else:
        small += ["-gpu_memory_target", "0.8"]
    printed = nnunet_project.call(plan_and_preprocess.main, *planned, *small, **encoder, nnUNet_n_proc_DA="1")
    for flag, value in {"-tr": "nnUNetTrainerCADS_demo_quick", "-p": f"Readme{block}"}.items():
        trained[trained.index(flag) + 1] = value
    words = trained if "-device" in trained else [*trained, "-device", "cpu"]
    printed += nnunet_project.call("nnUNetv2_train", *words, **encoder)
    assert "Pre-trained encoder: " in printed and "Mean Validation Dice" in printed
    assert "warning" not in (printed + capfd.readouterr().err).lower()
