"""The flags of `cads_compare`, and the names and values that they have. Nothing of nnU-Net is imported here: that takes
seconds, and a mistyped flag is told at once."""

import argparse
from pathlib import Path
from typing import Any

from pretraining.system.command import positive_int

SCRATCH, CADS = "scratch", "cads"
STOCK, RESENC_ARM = "nnUNetTrainer", "nnUNetResEncM"
"""nnU-Net's trainer, to whose name it appends what a variant changes; and the arm that names its variants alike."""
NAMED_ARMS = (SCRATCH, "CoTr", STOCK, RESENC_ARM)
"""Those that need no file."""
DEFAULTS: dict[str, Any] = {
    "configuration": "3d_fullres",
    "seeds": 3,
    "epochs": 100,
    "iterations": 250,
    "mirroring": True,
    "amp": "none",
    "images": True,
}
"""Of a comparison that begins."""
DESCRIPTION = """Does a pre-trained encoder help on your labelled data, and by how much?

Trains from random weights and from the encoders you give, with few labelled cases and several seeds, segments cases
that are held out of all trainings, and writes OUT/report.html. `cads_compare OUT` resumes; with more --arms, --labels
or --seeds it goes on with these. Start it several times, on several GPUs or machines that share OUT, to share the
work."""


def flags_of_command() -> argparse.ArgumentParser:
    """The parser of its flags; of what is not given, the comparison in OUT decides, or `DEFAULTS`."""
    parser = argparse.ArgumentParser(
        prog="cads_compare",
        usage="cads_compare OUT -d ID --encoder FILE [flags]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the comparison")
    parser.add_argument("-d", metavar="ID", type=positive_int, help="dataset, planned and preprocessed")
    parser.add_argument("-p", metavar="PLANS", help="default: nnUNetCADSPlans, or nnUNetPlans where there are none")
    parser.add_argument("-c", metavar="CONFIGURATION", help=f"default: {DEFAULTS['configuration']}")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda", help="cuda (default) or cpu")
    parser.add_argument(
        "--arms",
        metavar="ARM",
        nargs="+",
        action="extend",
        default=[],
        help=f"{', '.join(NAMED_ARMS)}, or the name of a trainer that nnU-Net finds, such as nnUNetTrainerAdam1en3 "
        f"({RESENC_ARM}Adam1en3: the same with that network); {SCRATCH} and each --encoder are always arms",
    )
    parser.add_argument(
        "--encoder", metavar="FILE", action="append", default=[], help=f"of arm {CADS}; NAME=FILE: of arm NAME"
    )
    parser.add_argument(
        "--labels",
        metavar="N",
        nargs="+",
        action="extend",
        type=positive_int,
        help="budgets (default: 1 2 4 8, as far as there are cases)",
    )
    for flag, text in (
        ("--seeds", "trainings of each arm and budget"),
        ("--epochs", "of each training"),
        ("--iterations", "of an epoch"),
    ):
        default = DEFAULTS[flag.removeprefix("--")]
        parser.add_argument(flag, metavar="N", type=positive_int, help=f"{text} (default: {default})")
    parser.add_argument(
        "--set",
        metavar="[ARM:]NAME=VALUE",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        help="settings of our trainers, such as initial_lr=1e-3; without ARM of all arms that have them",
    )
    parser.add_argument("--test", metavar="FILE", type=Path, help="names of the test cases, one in a line")
    patients = parser.add_mutually_exclusive_group()
    patients.add_argument("--patient-pattern", metavar="REGEX", help="its first group is the patient in a case's name")
    patients.add_argument("--patient-table", metavar="CSV", type=Path, help="columns case and patient")
    parser.add_argument("--store", metavar="STORE", type=Path, help="of the pre-training: no test case may be in it")
    parser.add_argument(
        "--no-mirroring",
        action="store_const",
        const=False,
        dest="mirroring",
        help="for labels that differ between left and right",
    )
    parser.add_argument("--amp", choices=("none", "bf16"), help="on the CPU; on GPUs nnU-Net's own (default: none)")
    parser.add_argument("--part", metavar="I", type=int, default=0, help="do every --parts'th training, from this one")
    parser.add_argument("--parts", metavar="N", type=positive_int, default=1, help="for job arrays")
    parser.add_argument("--estimate", action="store_true", help="time a few steps of each arm and report hours")
    parser.add_argument("--dry-run", action="store_true", help="list the trainings and cases, and do nothing")
    parser.add_argument("--report", action="store_true", help="write the report of what is finished, and train nothing")
    parser.add_argument(
        "--no-images",
        action="store_const",
        const=False,
        dest="images",
        help="no pictures and names of cases in this comparison's reports, from now on",
    )
    return parser
