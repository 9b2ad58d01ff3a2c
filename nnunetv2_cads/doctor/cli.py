"""`cads_doctor`: is everything there that pre-training and fine-tuning need, and what mends what is not.

Every check imports what it looks at itself, so that a broken package is a finding and not the end of the command.
"""

import argparse
import contextlib
import difflib
import importlib
import importlib.metadata
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from nnunetv2_cads.doctor.finding import OK, PROBLEM, WARNING, Finding
from nnunetv2_cads.doctor.memory import NO_PLANS, check_gpu, check_ram, plan_command
from nnunetv2_cads.encoder_file.record import preprocessing_differences
from nnunetv2_cads.nnunet_version import OLDEST_NNUNET, version_numbers

OLDEST_PYTHON = (3, 10)
INSTALL = {"torch": "pip install 'torch>=2.6'", "nnunetv2": "pip install 'nnunetv2>=2.8.1'"}


def main(argv: list[str] | None = None) -> int:
    """Print one line per check; returns the exit code: 0 ok or warnings, 1 problems."""
    arguments = _parser().parse_args(argv)
    levels = []
    for name, check in _checks(arguments).items():
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # nnU-Net's search prints
                warnings.simplefilter("ignore")  # of packages about each other: no finding of ours
                findings = list(check())
        except Exception as error:  # a broken package may raise anything; the other checks must still be made
            reason = (str(error).strip().splitlines() or [""])[0]
            missing = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
            mend = INSTALL.get(missing, f"pip install {missing}") if missing else "pip check"
            findings = [Finding(PROBLEM, f"{type(error).__name__}: {reason}", mend)]
        for finding in findings:
            levels.append(finding.level)
            sys.stdout.write(f"{finding.level:8} {name}: {finding.text}\n")
            if finding.mend:
                sys.stdout.write(f"{'':8} -> {finding.mend}\n")
    return int(PROBLEM in levels)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cads_doctor",
        description="Check the installation, nnU-Net's folders, an encoder file and plans. Exit code 1 for problems.",
        allow_abbrev=False,
    )
    parser.add_argument("--encoder", metavar="FILE", help="encoder file (default: what nnUNet_cads_encoder names)")
    plans = parser.add_mutually_exclusive_group()
    plans.add_argument("--plans", metavar="FILE", type=Path, help="plans to compare the encoder with")
    plans.add_argument("-d", metavar="ID", type=int, help="dataset whose nnUNetCADSPlans (or nnUNetPlans) to take")
    return parser


def _checks(arguments: argparse.Namespace) -> dict[str, Callable[[], Iterator[Finding]]]:
    plans_file = _plans_file(arguments)
    return {
        "Python": check_python,
        "packages": check_packages,
        "nnU-Net": check_nnunet,
        "trainer": check_trainer,
        "folders": check_folders,
        "plans": lambda: check_plans(plans_file),
        "encoder": lambda: check_encoder(arguments.encoder, plans_file),
        "GPU": lambda: check_gpu(plans_file),
        "memory": lambda: check_ram(plans_file),
    }


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        yield Finding(PROBLEM, f"{found} is older than 3.10", "python3.12 -m venv .venv")
    else:
        yield Finding(OK, f"{found} ({sys.executable})")


def check_packages() -> Iterator[Finding]:
    """torch, and that torchvision and timm, where installed, were built for it."""
    for name in ("torch", "torchvision", "timm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "torch":
                yield Finding(PROBLEM, "torch is not installed", INSTALL["torch"])
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # versions that do not fit raise RuntimeError, OSError, AttributeError, ...
            yield Finding(
                PROBLEM, f"{name} {version} does not import ({error})", "pip install --upgrade torch torchvision timm"
            )
        else:
            yield Finding(OK, f"{name} {version}")


def check_nnunet() -> Iterator[Finding]:
    """nnU-Net's version."""
    try:
        version = importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(PROBLEM, "nnunetv2 is not installed", INSTALL["nnunetv2"])
        return
    if version_numbers(version) < OLDEST_NNUNET:
        yield Finding(PROBLEM, f"{version} is older than 2.8.1", "pip install --upgrade 'nnunetv2>=2.8.1'")
    else:
        yield Finding(OK, version)


def check_trainer() -> Iterator[Finding]:
    """Whether nnU-Net's own search finds nnUNetTrainerCADS."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    folder = Path(__file__).parents[1] / "training" / "discovery"
    try:
        recursive_find_trainer_class_by_name("nnUNetTrainerCADS")
    except RuntimeError:
        others = f'"${{nnUNet_extTrainer:+$nnUNet_extTrainer{os.pathsep}}}"'
        mend = f"export nnUNet_extTrainer={others}{shlex.quote(str(folder))}"
        yield Finding(PROBLEM, "nnU-Net does not find nnUNetTrainerCADS", mend)
    else:
        yield Finding(OK, "nnU-Net finds nnUNetTrainerCADS")


def check_folders() -> Iterator[Finding]:
    """nnU-Net's three folders: set, there, writable."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(name)
        if not value:
            yield Finding(PROBLEM, f"{name} is not set", f'export {name}="$HOME/{name}"')
        elif not Path(value).is_dir():
            yield Finding(PROBLEM, f"{name}: {value} is no folder", f"mkdir -p {shlex.quote(value)}")
        elif not os.access(value, os.W_OK):
            level = WARNING if name == "nnUNet_raw" else PROBLEM
            yield Finding(level, f"{name}: {value} is not writable", f"chmod u+w {shlex.quote(value)}")
        else:
            yield Finding(OK, f"{name}: {value}")


def check_encoder(encoder_file: str | None, plans_file: Path | None) -> Iterator[Finding]:
    """The encoder's keys, format, spacing and intensities, these against plans."""
    from nnunetv2_cads.encoder_file.read import EncoderCheckpointError, compare_encoder_state, read_encoder_checkpoint
    from nnunetv2_cads.network_architecture import PVTv2Encoder

    file = encoder_file or os.environ.get("nnUNet_cads_encoder")
    if not file:
        advice = "give the path of a cads_encoder.pth, or train with -tr nnUNetTrainerCADS_scratch"
        yield Finding(WARNING, f"nnUNet_cads_encoder is not set; {advice}")
        return
    try:
        checkpoint = read_encoder_checkpoint(file)
    except EncoderCheckpointError as error:
        yield Finding(PROBLEM, str(error), _similar_file(Path(file)))
        return
    report = compare_encoder_state(PVTv2Encoder(), checkpoint.state)
    complete = not report.missing and not report.mismatched
    yield Finding(OK if complete else PROBLEM, f"{file}: {report}" + "; export it from its run again" * (not complete))
    if plans_file is not None:
        yield from _compare(checkpoint.record, plans_file)


def check_plans(plans_file: Path | None) -> Iterator[Finding]:
    """Whether the plans can be read, and what they plan; nothing where none are asked for."""
    if plans_file is None:
        return
    try:
        configurations = json.loads(plans_file.read_text(encoding="utf-8"))["configurations"]
        planned = [
            f"{name} ({' x '.join(map(str, configuration['patch_size']))}, batch {configuration['batch_size']})"
            for name, configuration in configurations.items()
            if "patch_size" in configuration
        ]
    except NO_PLANS as error:
        reason = "there are no plans" if isinstance(error, OSError) else f"no plans of nnU-Net's ({error})"
        yield Finding(PROBLEM, f"{plans_file}: {reason}", plan_command(plans_file))
    else:
        yield Finding(OK, f"{plans_file}: {', '.join(planned)}")


def _similar_file(path: Path) -> str:
    """The command that takes the file which a mistyped path may mean; empty where none is like it."""
    if path.exists() or not path.parent.is_dir():
        return ""
    files = [file.name for file in path.parent.iterdir() if file.suffix in (".pth", ".safetensors")]
    similar = difflib.get_close_matches(path.name, files, n=1)
    return f"export nnUNet_cads_encoder={shlex.quote(str(path.absolute().with_name(similar[0])))}" if similar else ""


def _compare(record: dict, plans_file: Path) -> Iterator[Finding]:
    """What pre-training saw against what the plans show."""
    try:
        plans = json.loads(plans_file.read_text(encoding="utf-8"))
        configurations = plans["configurations"]
        configuration = configurations.get("3d_fullres") or configurations["2d"]
        differences = preprocessing_differences(
            record,
            configuration["spacing"],
            configuration["normalization_schemes"],
            plans["foreground_intensity_properties_per_channel"],
        )
    except NO_PLANS:
        return  # `check_plans` says so
    for difference in differences:
        if "only CT" in difference or difference.startswith("Axis order"):
            yield Finding(WARNING, difference)
        else:
            flags = ["--pretraining-spacing"] if difference.startswith("Spacing") else []
            advice = "; where it is to see the same, plan so and train with -p nnUNetCADSPlans"
            yield Finding(WARNING, difference + advice, plan_command(plans_file, *flags))


def _plans_file(arguments: argparse.Namespace) -> Path | None:
    if arguments.d is None:
        return arguments.plans
    root = Path(os.environ.get("nnUNet_preprocessed") or ".")
    pattern = f"Dataset{arguments.d:03d}_*/nnUNet{{}}Plans.json"
    found = [path for kind in ("CADS", "") for path in sorted(root.glob(pattern.format(kind)))]
    return found[0] if found else root / f"Dataset{arguments.d:03d}"


if __name__ == "__main__":
    sys.exit(main())
