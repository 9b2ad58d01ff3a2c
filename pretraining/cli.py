"""The console commands: arguments in, one clear sentence and an exit code out.

Exit codes: 0 done, 1 done but some inputs failed, 2 nothing could be done, 130 / 143 stopped by SIGINT / SIGTERM.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pretraining.errors import UserError, environment_errors_as_sentences

logger = logging.getLogger("pretraining")


def _run(command: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Run one command; turn a `UserError`, and what the machine refuses, into a sentence and exit code 2."""
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)  # ours alone: other packages' notes are not for the user
    logger.setLevel(logging.INFO)
    try:
        with environment_errors_as_sentences():
            return command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        return _say(error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    finally:
        logger.removeHandler(handler)


def _say(error: UserError) -> int:
    if str(error):  # without text: another process of the run speaks
        sys.stderr.write(f"error: {error}\n")
    return 2


def preprocess(argv: list[str] | None = None) -> int:
    """`cads_preprocess INPUT STORE`: CT scans to a store of volumes at 1 mm and their radiographs."""
    return _run(_preprocess, argv)


def _preprocess(argv: list[str]) -> int:
    from pretraining.data.cores import default_processes
    from pretraining.data.preprocess import Part, preprocess

    parser = argparse.ArgumentParser(
        prog="cads_preprocess",
        description="Bring CT scans to 1 mm in one orientation, make their frontal radiographs, and store both for "
        "cads_pretrain. Can be stopped and started again.",
    )
    parser.add_argument("input", metavar="INPUT", type=Path, help="folder of NIfTI, NRRD, MHA or DICOM, or one file")
    parser.add_argument("store", metavar="STORE", type=Path, help="new folder, or a store to go on with or add to")
    parser.add_argument(
        "-np", metavar="N", type=positive_int, default=default_processes(), help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "-num_parts", metavar="N", type=positive_int, default=1, help="split the scans into N parts, for job arrays"
    )
    parser.add_argument("-part_id", metavar="I", type=int, help="which part to do, from 0 to N - 1")
    parser.add_argument(
        "--anonymise", action="store_true", help="call volumes by hashes; names of files only in STORE/private"
    )
    arguments = parser.parse_args(argv)
    parts, number = arguments.num_parts, arguments.part_id
    if number is None and parts > 1:
        raise UserError(f"-num_parts {parts}: needs -part_id as well, which part to do, from 0 to {parts - 1}")
    if number is not None and parts == 1:
        raise UserError(f"-part_id {number}: needs -num_parts as well, how many parts there are")
    if number is not None and not 0 <= number < parts:
        raise UserError(f"-part_id {number}: must be from 0 to {parts - 1}, for -num_parts is {parts}")
    return preprocess(arguments.input, arguments.store, arguments.np, Part(number or 0, parts), arguments.anonymise)


def positive_int(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def pretrain(argv: list[str] | None = None) -> int:
    """`cads_pretrain STORE OUTPUT`: self-supervised training on a store."""
    return _run(_pretrain, argv)


def _pretrain(argv: list[str]) -> int:
    from pretraining.config import PRESETS, PretrainConfig
    from pretraining.distributed import start_processes
    from pretraining.memory import no_memory_as_error
    from pretraining.run_folder import prepare_output, saved_device
    from pretraining.train import estimate_run, train

    parser = argparse.ArgumentParser(
        prog="cads_pretrain",
        usage="cads_pretrain STORE OUTPUT [--preset NAME] [--c] [flags]",
        description="Pre-train the CADS encoder on a store that cads_preprocess wrote. The defaults are the published "
        "run; a preset changes some of them (docs/pretraining.md), and flags change single ones.",
        allow_abbrev=False,
    )
    parser.add_argument("store", metavar="STORE", type=Path, help="folder that cads_preprocess wrote")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder of the run; new, except with --c")
    parser.add_argument("--c", action="store_true", help="continue the run in OUTPUT exactly where it stopped")
    parser.add_argument("--estimate", action="store_true", help="say what the run would cost, and write nothing")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="published (default), small (one GPU), demo (CPU)")
    _add_setting_flags(parser)
    arguments = vars(parser.parse_args(argv))
    store, output, go_on = arguments.pop("store"), arguments.pop("output"), arguments.pop("c")
    only_estimate = arguments.pop("estimate")
    preset = PRESETS[arguments.pop("preset", None) or "published"]
    settings = {**preset, **arguments}
    device = settings.get("device") or (saved_device(output) if go_on else "auto")
    with no_memory_as_error(), start_processes(device) as processes:
        if only_estimate:
            return estimate_run(store, PretrainConfig().replace(**settings), processes)
        with ExitStack() as held:
            config = processes.from_first(lambda: prepare_output(output, settings, store, go_on, held, processes))
            return train(store, output, config, processes)


def _add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting of `pretraining.config`; a flag not given leaves no trace in the arguments."""
    from pretraining.config import SETTINGS

    groups = {}
    for name, (section, spec) in SETTINGS.items():
        if section not in groups:
            groups[section] = parser.add_argument_group(f"{section} settings")
        default = spec.default
        kind = {"dest": name, "default": argparse.SUPPRESS}
        if isinstance(default, bool):
            kind |= {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple):
            kind |= {"type": type(default[0]), "nargs": len(default), "metavar": "N"}
            default = " ".join(map(str, default))
        else:
            kind |= {"type": type(default), "choices": spec.metadata["choices"]}
            if not spec.metadata["choices"]:
                kind |= {"metavar": "N" if isinstance(default, (int, float)) else "NAME"}
        flag = "--" + name.replace("_", "-")
        groups[section].add_argument(
            flag, help=f"{spec.metadata['doc']} (default: {default})".replace("%", "%%"), **kind
        )


def export(argv: list[str] | None = None) -> int:
    """`cads_export RUN_OR_CHECKPOINT OUT`: write the encoder of a run or checkpoint."""
    return _run(_export, argv)


def _export(argv: list[str]) -> int:
    from pretraining.export import export_encoder

    parser = argparse.ArgumentParser(
        prog="cads_export",
        description="Write an encoder file from a run of cads_pretrain or from a checkpoint in the published layout.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="RUN_OR_CHECKPOINT", type=Path, help="folder of a run, or a checkpoint file")
    parser.add_argument("out", metavar="OUT", type=Path, help="new file (.pth or .safetensors), or a folder")
    parser.add_argument(
        "--transpose-in-plane",
        action="store_true",
        help="exchange height and width of all kernels: for encoders trained on (z, x, y) volumes, like the published",
    )
    arguments = parser.parse_args(argv)
    return export_encoder(arguments.source, arguments.out, arguments.transpose_in_plane)
