"""nnU-Net's search for a trainer, as `cads_compare` asks for it."""

import subprocess
import sys
from pathlib import Path

FIND = "from nnunetv2_cads.comparison.trainers import find_trainer; find_trainer('nnUNetTrainerCADS')"


def test_the_search_is_silent(nnunet_project):
    """In a new process, which imports all of nnU-Net's trainers."""
    here = nnunet_project.environment(PYTHONWARNINGS=None, PYTHONPATH=str(Path(__file__).parents[3]))
    done = subprocess.run([sys.executable, "-c", FIND], env=here, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
