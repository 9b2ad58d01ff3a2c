"""`cads_pretrain`: from a store to an encoder file."""

import argparse
import logging
import math
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pretraining.config import PretrainConfig
from pretraining.flags import add_setting_flags, check_use
from pretraining.method.pretrainer import Pretrainer
from pretraining.presets import PRESETS
from pretraining.run.beforehand import report_start
from pretraining.run.checkpoint import encoder_record, resume_from, save_encoder
from pretraining.run.estimate import estimate
from pretraining.run.folder import CHECKPOINT, ENCODER, RunFolder, check_batch_size
from pretraining.run.saving_and_stopping import open_run
from pretraining.store.store import Store
from pretraining.system.command import run_command
from pretraining.system.devices import choose_device, prepare_device, start_processes
from pretraining.system.errors import UserError
from pretraining.system.processes import LostRankError, Processes
from pretraining.system.torch_errors import no_memory_as_error
from pretraining.views.batches import batches, join
from pretraining.views.loader import Sample, ViewStream, make_loader, steps_per_epoch

EXAMPLES = 4
"""Samples in a run's pictures."""

logger = logging.getLogger("pretraining.train")  # under torchrun -m, __name__ is "__main__"


def train(
    store: str | Path, output: str | Path, config: PretrainConfig | Mapping[str, Any], resume: bool = False
) -> int:
    """Begin or resume the run in ``output`` and train until its end or a stop; all that `cads_pretrain` does.

    Args:
        store: folder that `cads_preprocess` wrote.
        output: folder of the run; new, except to resume.
        config: of the run, or some settings by name; see `pretraining.run.folder.RunFolder` for the others, and for
            what may change on resume.
        resume: ``--c``: continue from the checkpoint in ``output``; where there is no run yet, one begins.

    Returns:
        0 when the run is finished or ``max_hours`` are over, 128 + signal number when a signal stopped it,
        `pretraining.run.saving_and_stopping.LOST_RANK` when another rank has ended.

    Raises:
        UserError: store, folder, device, settings or checkpoint cannot be used, or the run is not finite any more.
    """
    started, store, output = time.monotonic(), Path(store), Path(output)
    settings = config.settings() if isinstance(config, PretrainConfig) else config
    folder = RunFolder(output, settings, resume)
    with no_memory_as_error(), start_processes(folder.device) as processes:
        opened, device = _open(store, folder.device, processes)
        summary = opened.summary()
        with folder.open(summary, device, processes) as config:
            prepare_device(device, config.run.tf32)
            stream = ViewStream(opened, config)
            cads = Pretrainer(config, steps_per_epoch(stream, config), device, processes)
            resume_from(output / CHECKPOINT, cads, summary)
            report_start(cads, stream, output)
            examples = _examples(stream, processes)
            loader = make_loader(stream, config, cads.step, cads.total_steps, device, processes)
            deadline = started + 3600 * config.run.max_hours if config.run.max_hours else math.inf
            with (
                open_run(output, cads, summary, _how_to_resume(store, output, processes), deadline, examples) as run,
                closing(batches(loader)) as views_of_steps,
            ):
                try:
                    for views in views_of_steps:
                        with processes.detect_lost_ranks():
                            result = cads.train_step(*views)
                            stop = run.agree_to_stop(result)
                        if run.after_step(result, stop):
                            return stop.exit_code
                except LostRankError as error:
                    return run.end_after_lost_rank(error)
            if processes.is_rank0:
                _save_encoder(output / ENCODER, cads, opened.spacing_mm)
    return 0


def estimate_run(store: Path, config: PretrainConfig) -> int:
    """Report what a run would cost, from a few steps on noise; nothing is written.

    Raises:
        UserError: the store or the device cannot be used.
    """
    with no_memory_as_error(), start_processes(config.run.device) as processes:
        processes.broadcast_from_rank0(lambda: check_batch_size(config, processes))
        opened, device = _open(store, config.run.device, processes)
        prepare_device(device, config.run.tf32)
        result = estimate(config, steps_per_epoch(ViewStream(opened, config), config), device, processes)
        if processes.is_rank0:
            logger.info("%s", result)
    return 0


def _open(store: Path, device: str, processes: Processes) -> tuple[Store, torch.device]:
    """The store and the device of a run, found to be usable on all ranks."""
    return processes.on_all_ranks(lambda: (Store.open(store), choose_device(device, processes)))


def _how_to_resume(store: Path, output: Path, processes: Processes) -> str:
    if processes.world_size > 1:
        return "resume with the same torchrun command and --c, on any number of processes"
    return f"resume with: {shlex.join(['cads_pretrain', str(store), str(output), '--c'])}"


def _save_encoder(path: Path, cads: Pretrainer, spacing_mm: float) -> None:
    save_encoder(path, cads.teacher.backbone.state_dict(), encoder_record(cads.config, cads.step, spacing_mm))
    quoted = shlex.quote(str(path.absolute()))
    logger.info("encoder: %s\nfine-tune from it with: export nnUNet_cads_encoder=%s", path, quoted)


def _examples(stream: ViewStream, processes: Processes) -> Sample:
    """The first samples' crops and pairs of crops, on which a run shows what it has learnt."""
    config, crop, pair = stream.config, None, None
    if config.restores:
        crop = processes.broadcast_from_rank0(lambda: join([stream.crop(n) for n in range(EXAMPLES)]))
    if config.has_points:
        pair = processes.broadcast_from_rank0(lambda: join([stream.pair(n) for n in range(EXAMPLES)]))
    return Sample(None, None, None, crop, pair)


def main(argv: list[str] | None = None) -> int:
    """`cads_pretrain STORE OUTPUT`: self-supervised training on a store."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="cads_pretrain",
        usage="cads_pretrain STORE OUTPUT [--preset NAME] [--c] [flags]",
        description="Pre-train the encoder on a store that cads_preprocess wrote. The defaults are the published "
        "run; a preset changes some of them (docs/pretraining.md), and flags change single ones.",
        allow_abbrev=False,
    )
    parser.add_argument("store", metavar="STORE", type=Path, help="folder that cads_preprocess wrote")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder of the run; new, except with --c")
    parser.add_argument(
        "--c", action="store_true", help="resume the run in OUTPUT exactly where it stopped; begin it if there is none"
    )
    parser.add_argument("--estimate", action="store_true", help="report what the run would cost, and write nothing")
    parser.add_argument("--plain", action="store_true", help="train with plain CADS, written to be read: slow, no --c")
    presets = (
        "CADS: published (default; the paper's, for four GPUs), cads (small, for a CPU). Contrast of points, which "
        "raised Dice in our trials: small (for one GPU), demo (for a CPU). On a CPU, small and published take days to "
        "months; the hours are reported before the first step"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), help=presets)
    add_setting_flags(parser)
    arguments = vars(parser.parse_args(argv))
    store, output, resume = arguments.pop("store"), arguments.pop("output"), arguments.pop("c")
    only_estimate, plain = arguments.pop("estimate"), arguments.pop("plain")
    settings = {**PRESETS[arguments.pop("preset") or "published"], **arguments}
    if not resume:
        check_use(arguments, PretrainConfig().replace(**settings))
    if plain:
        if resume or only_estimate:
            raise UserError("--plain has neither --c nor --estimate; leave them out")
        from pretraining.plain.train import train_plain  # batchgenerators loads pandas and more, for a second

        with no_memory_as_error():
            return train_plain(store, output, PretrainConfig().replace(**settings))
    if only_estimate:
        return estimate_run(store, PretrainConfig().replace(**settings))
    return train(store, output, settings, resume)


if __name__ == "__main__":  # torchrun --nproc_per_node=N -m pretraining.train STORE OUTPUT
    sys.exit(main())
