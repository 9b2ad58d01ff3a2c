"""`cads_export`: the encoder of a run or checkpoint as ``cads_encoder.pth`` or ``.safetensors``."""

import argparse
import logging
from pathlib import Path

from torch import Tensor

from nnunetv2_cads.encoder_file.read import EncoderFileError, read_encoder_file, report_on
from nnunetv2_cads.encoder_file.record import ARCHITECTURE, EncoderRecord
from nnunetv2_cads.encoder_file.safe_loading import SAFETENSORS
from nnunetv2_cads.encoder_file.write import NNSSL, OURS
from pretraining import __version__
from pretraining.run.checkpoint import save_encoder
from pretraining.run.folder import CHECKPOINT, ENCODER
from pretraining.system.command import run_command
from pretraining.system.errors import UserError
from pretraining.system.files import remove_leftovers_of

logger = logging.getLogger(__name__)


def export_encoder(source: Path, out: Path, transpose_in_plane: bool = False, layout: str = OURS) -> int:
    """Write the encoder of ``source`` to ``out`` and report how its keys match the network's.

    Args:
        source: a run's folder, its ``checkpoint_latest.pth``, a ``cads_encoder.pth``, or a file in the published
            layout.
        out: the new file, in safetensors' format with the suffix ``.safetensors``; or a folder to put
            ``cads_encoder.pth`` into.
        transpose_in_plane: exchange height and width of every kernel (see `transposed_in_plane`).
        layout: of the file, ours or that of nnssl (``.pth`` alone).

    Returns:
        0 if every key was there, 1 if some were missing (the file is written all the same).

    Raises:
        UserError: no encoder in ``source``, tensors of other shapes, or ``out`` exists or has another suffix.
    """
    out = out / ENCODER if out.is_dir() else out
    if out.suffix not in (".pth", SAFETENSORS):
        raise UserError(f"{out}: must end in .pth or {SAFETENSORS}; the suffix decides the format")
    if layout == NNSSL and out.suffix == SAFETENSORS:
        raise UserError(f"{out}: nnssl's format has no {SAFETENSORS} form; give a name that ends in .pth")
    if out.exists():
        raise UserError(f"{out}: exists already and is not overwritten; choose another name, or remove it first")
    if source.is_dir():
        candidates = [source / name for name in (ENCODER, CHECKPOINT)]
        source = next((path for path in candidates if path.exists()), source)
        if source.is_dir():
            raise UserError(f"{source}: has neither {ENCODER} nor {CHECKPOINT}; give the folder of a cads_pretrain run")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a cads_pretrain run or a checkpoint")
    try:
        content = read_encoder_file(source)
    except EncoderFileError as error:
        raise UserError(str(error)) from error
    report = report_on(content)
    logger.info("%s: %s; %d keys of the head left out", source, report, len(content.ignored))
    for name in ("missing", "unexpected", "mismatched"):
        for key in getattr(report, name):
            logger.info("  %s: %s", name, key)
    if report.mismatched or not report.matched:
        raise UserError(
            f"{source}: its tensors do not fit the CADS encoder (PVTv2-{content.size}); give a CADS checkpoint"
        )
    state = {key: content.state[key] for key in report.matched}
    record = content.record
    if record == EncoderRecord():
        record = EncoderRecord(architecture=ARCHITECTURE, notes={"source": "published layout"})
    if transpose_in_plane:
        state = transposed_in_plane(state)
        record = record.with_notes(transposed_in_plane=not record.notes.get("transposed_in_plane", False))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out.parent}: cannot be made ({error.strerror}); choose another place") from error
    remove_leftovers_of(out)
    save_encoder(out, state, record.with_notes(exported_by=__version__), layout)
    logger.info("encoder: %s", out)
    return 1 if report.missing else 0


def transposed_in_plane(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Exchange height and width of every spatial kernel, 3D and 2D.

    For an image with its last two axes exchanged, the new encoder gives the old one's maps with theirs exchanged. So an
    encoder trained on (z, x, y) volumes fits nnU-Net's (z, y, x).
    """
    return {key: value.transpose(-1, -2).contiguous() if value.dim() >= 4 else value for key, value in state.items()}


def main(argv: list[str] | None = None) -> int:
    """`cads_export RUN_OR_CHECKPOINT OUT`: write the encoder of a run or checkpoint."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
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
        help="exchange height and width of all kernels: for encoders trained on (z, x, y), like the published one",
    )
    parser.add_argument(
        "--format",
        choices=(OURS, NNSSL),
        default=OURS,
        help="nnssl: for CT alone, with the plan by which nnU-Net's development version adapts to it (default: cads)",
    )
    arguments = parser.parse_args(argv)
    return export_encoder(arguments.source, arguments.out, arguments.transpose_in_plane, arguments.format)
