"""nnssl's checkpoint format, which nnU-Net's development version reads: the encoder for CT and how to build on it.

Source: nnssl and nnU-Net (``nnUNetv2_preprocess_like_nnssl``, ``nnUNetv2_train_pretrained``; not in nnU-Net 2.8.1).
The file is a ``torch.save``d dict of ``network_weights`` (PVT-UNet's keys), ``nnssl_adaptation_plan`` and
``citations``; beside them stands our record, so that nothing of the encoder file is lost. It has the encoder's half for
CT alone: the format knows no radiographs.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunetv2_cads.encoder_file import BACKBONE_PREFIX, RECORD
from nnunetv2_cads.encoder_file.checksums import CheckpointFileError
from nnunetv2_cads.encoder_file.record import EncoderRecord, completed
from nnunetv2_cads.network_architecture.pvt_unet import PVTUNet, plans_architecture
from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE, SUFFIX

WEIGHTS, ADAPTATION, CITATIONS = "network_weights", "nnssl_adaptation_plan", "citations"
CROP_NOTES = ("crop_size", "point_crop_size", "restored_crop_size")
"""Notes of a record that name the crops of its pre-training, the first one that is there counts."""
CITATION = (
    "Ye, Y., Zhang, J., Chen, Z., Xia, Y. CADS: A Self-Supervised Learner via Cross-Modal Alignment and Deep "
    "Self-Distillation for CT Volume Segmentation. IEEE Transactions on Medical Imaging 44(1), 118-129 (2025)."
)


def nnssl_content(state: Mapping[str, Tensor], record: EncoderRecord) -> dict[str, Any]:
    """What a file of nnssl's holds, from an encoder and its record.

    Args:
        state: encoder key -> tensor (no prefix); those of the radiographs' half are left out.
        record: of the pre-training; what it does not say is the published run's.
    """
    prefix = PVTUNet.key_to_encoder + "."
    saw = completed(record)
    patch_size = list(next((record.notes[name] for name in CROP_NOTES if name in record.notes), MINIMUM_SIZE[3]))
    size = (saw.architecture or "").rpartition("-")[2]
    architecture = plans_architecture(3)
    kwargs = architecture["arch_kwargs"] | ({"size": size} if size else {})
    return {
        WEIGHTS: {prefix + key: value for key, value in state.items() if SUFFIX[2] not in key},
        ADAPTATION: {
            "architecture_plans": {
                "arch_class_name": architecture["network_class_name"],
                "arch_kwargs": kwargs,
                "arch_kwargs_requiring_import": architecture["_kw_requires_import"],
            },
            "pretrain_plan": {"configurations": {"cads": {"spacing": list(saw.spacing_mm), "patch_size": patch_size}}},
            "pretrain_num_input_channels": 1,
            "recommended_downstream_patchsize": patch_size,
            "key_to_encoder": PVTUNet.key_to_encoder,
            "key_to_stem": PVTUNet.key_to_stem,
            "keys_to_in_proj": list(PVTUNet.keys_to_in_proj),
            "key_to_lpe": PVTUNet.key_to_lpe,
        },
        CITATIONS: [{"type": "Pretraining", "name": "CADS", "apa_citations": [CITATION]}],
        RECORD: record.to_file(),
    }


def teacher_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder of a file of nnssl's, under the keys of an encoder file.

    Raises:
        CheckpointFileError: it is of another network.
    """
    plan, weights = content[ADAPTATION], content[WEIGHTS]
    prefix = plan.get("key_to_encoder") if isinstance(plan, dict) else None
    name = plan.get("architecture_plans", {}).get("arch_class_name") if isinstance(plan, dict) else None
    if not isinstance(weights, dict) or prefix != PVTUNet.key_to_encoder or not str(name).endswith(PVTUNet.__name__):
        raise CheckpointFileError(f"is a checkpoint of nnssl's for {name}, not for {PVTUNet.__name__}")
    start = prefix + "."
    return {BACKBONE_PREFIX + key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
