"""`cads_doctor`: whether everything is there that pre-training and fine-tuning need, and how to fix what is not.

Each check imports what it checks, so that a broken package is a finding and does not end the command.
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

from nnunetv2_cads.doctor.dataset import check_dataset, cost_of_spacing
from nnunetv2_cads.doctor.finding import OK, PROBLEM, WARNING, Finding
from nnunetv2_cads.doctor.folders import check_folders
from nnunetv2_cads.doctor.leaks import check_leaks
from nnunetv2_cads.doctor.memory import NOT_PLANS, check_gpu, check_ram, plan_command
from nnunetv2_cads.encoder_file.record import (
    INTENSITIES,
    SPACING,
    EncoderRecord,
    completed,
    preprocessing_differences,
)
from nnunetv2_cads.nnunet_version import OLDEST_NNUNET, version_numbers
from pretraining.system.command import run_command

OLDEST_PYTHON = (3, 10)
_FLAGS = {INTENSITIES: (), SPACING: ("--pretraining-spacing",)}
"""Kind of difference -> flags of `cads_plan_and_preprocess` that remove it."""
INSTALL = {"torch": "pip install 'torch>=2.6'", "nnunetv2": "pip install 'nnunetv2>=2.8.1'"}


def main(argv: list[str] | None = None) -> int:
    """Print one line per check; returns the exit code: 0 ok or warnings, 1 problems."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    levels = []
    checks = _self_tests(arguments.device) if arguments.self_test else _checks(arguments)
    for name, check in checks.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # nnU-Net's search prints
                warnings.simplefilter("ignore")  # other packages' warnings are not findings
                findings = list(check())
        except Exception as error:  # a broken package may raise anything; the other checks must still run
            reason = (str(error).strip().splitlines() or [""])[0]
            missing = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
            fix = INSTALL.get(missing, f"pip install {missing}") if missing else "pip check"
            findings = [Finding(PROBLEM, f"{type(error).__name__}: {reason}", fix)]
        for finding in findings:
            levels.append(finding.level)
            sys.stdout.write(f"{finding.level:8} {name}: {finding.text}\n")
            if finding.fix:
                sys.stdout.write(f"{'':8} -> {finding.fix}\n")
        sys.stdout.flush()
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
    parser.add_argument(
        "--self-test", action="store_true", help="instead: check what this machine computes, and how fast (minutes)"
    )
    parser.add_argument(
        "--device", default="auto", help="of --self-test: cpu, cuda, cuda:1, mps (default: %(default)s)"
    )
    parser.add_argument("--store", metavar="STORE", type=Path, help="of the pre-training: is a case of -d ID in it?")
    return parser


def _self_tests(device: str) -> dict[str, Callable[[], Iterator[Finding]]]:
    from nnunetv2_cads.doctor.self_test import self_tests

    return self_tests(device)


def _checks(arguments: argparse.Namespace) -> dict[str, Callable[[], Iterator[Finding]]]:
    plans_file = _plans_file(arguments)
    return {
        "Python": check_python,
        "packages": check_packages,
        "nnU-Net": check_nnunet,
        "trainer": check_trainer,
        "folders": check_folders,
        "dataset": lambda: check_dataset(arguments.d, arguments.encoder, plans_file),
        "plans": lambda: check_plans(plans_file),
        "encoder": lambda: check_encoder(arguments.encoder, plans_file),
        "GPU": lambda: check_gpu(plans_file),
        "memory": lambda: check_ram(plans_file),
        **({"leaks": lambda: check_leaks(arguments.d, arguments.store)} if arguments.store else {}),
    }


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        yield Finding(PROBLEM, f"{found} is older than 3.10", "python3.12 -m venv .venv")
    else:
        yield Finding(OK, f"{found} ({sys.executable})")


def check_packages() -> Iterator[Finding]:
    """torch; torchvision and timm, where installed, which must be built for it."""
    for name in ("torch", "torchvision", "timm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "torch":
                yield Finding(PROBLEM, "torch is not installed", INSTALL["torch"])
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # mismatched versions raise RuntimeError, OSError, AttributeError, ...
            yield Finding(
                PROBLEM,
                f"{name} {version} cannot be imported ({error})",
                "pip install --upgrade torch torchvision timm",
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
        fix = f"export nnUNet_extTrainer={others}{shlex.quote(str(folder))}"
        yield Finding(PROBLEM, "nnU-Net does not find nnUNetTrainerCADS", fix)
    else:
        yield Finding(OK, "nnU-Net finds nnUNetTrainerCADS")


def check_encoder(encoder_file: str | None, plans_file: Path | None) -> Iterator[Finding]:
    """The encoder file's keys and record; spacing and intensities compared with the plans."""
    from nnunetv2_cads.encoder_file.read import EncoderFileError, read_encoder_file, report_on

    file = encoder_file or os.environ.get("nnUNet_cads_encoder")
    if not file:
        advice = "give the path of a cads_encoder.pth, or train with -tr nnUNetTrainerCADS_scratch"
        yield Finding(WARNING, f"nnUNet_cads_encoder is not set; {advice}")
        return
    try:
        content = read_encoder_file(file)
    except EncoderFileError as error:
        yield Finding(PROBLEM, str(error), _similar_file(Path(file)))
        return
    report = report_on(content)
    if report.missing or report.mismatched:
        yield Finding(PROBLEM, f"{file}: {report}; export it from its run again")
    else:
        only_3d = "" if content.takes_xrays else "; for 3D configurations alone"
        yield Finding(OK, f"{file}: {report}{only_3d}")
    if plans_file is not None:
        named = f"nnUNet_cads_encoder={shlex.quote(encoder_file)} " if encoder_file else ""
        yield from _compare(content.record, plans_file, named)


def check_plans(plans_file: Path | None) -> Iterator[Finding]:
    """Whether the plans can be read, and what they plan; nothing if none were asked for."""
    if plans_file is None:
        return
    try:
        configurations = json.loads(plans_file.read_text(encoding="utf-8"))["configurations"]
        planned = [
            f"{name} ({' x '.join(map(str, configuration['patch_size']))}, batch {configuration['batch_size']})"
            for name, configuration in configurations.items()
            if "patch_size" in configuration
        ]
    except NOT_PLANS as error:
        reason = "there are no plans" if isinstance(error, OSError) else f"not a plans file of nnU-Net ({error})"
        flags = ("-c", "3d_fullres", "--pretraining-spacing")  # as the README plans
        yield Finding(PROBLEM, f"{plans_file}: {reason}", plan_command(plans_file, *flags))
    else:
        yield Finding(OK, f"{plans_file}: {', '.join(planned)}")


def _similar_file(path: Path) -> str:
    """The command that sets the path of a file with a similar name; empty if there is none."""
    if path.exists() or not path.parent.is_dir():
        return ""
    files = [file.name for file in path.parent.iterdir() if file.suffix in (".pth", ".safetensors")]
    similar = difflib.get_close_matches(path.name, files, n=1)
    return f"export nnUNet_cads_encoder={shlex.quote(str(path.absolute().with_name(similar[0])))}" if similar else ""


def _compare(record: EncoderRecord, plans_file: Path, named: str) -> Iterator[Finding]:
    """What pre-training saw, compared with what the plans show; ``named`` before a command names the encoder to it."""
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
    except NOT_PLANS:
        return  # `check_plans` reports it
    for difference in differences:
        if difference.kind in _FLAGS:
            cost = ""
            if difference.kind == SPACING:
                cost = f" ({cost_of_spacing(configuration['spacing'], completed(record).spacing_mm)})"
            text = f"{difference.text}; to show it the same, plan again{cost} and train with -p nnUNetCADSPlans"
            yield Finding(WARNING, text, named + plan_command(plans_file, *_FLAGS[difference.kind]))
        else:
            yield Finding(WARNING, difference.text)


def _plans_file(arguments: argparse.Namespace) -> Path | None:
    if arguments.d is None:
        return arguments.plans
    root = Path(os.environ.get("nnUNet_preprocessed") or ".")
    pattern = f"Dataset{arguments.d:03d}_*/nnUNet{{}}Plans.json"
    found = [path for planner in ("CADS", "") for path in sorted(root.glob(pattern.format(planner)))]
    return found[0] if found else root / f"Dataset{arguments.d:03d}"


if __name__ == "__main__":
    sys.exit(main())
