"""The encoder file: a pre-trained encoder and the record of its pre-training.

``cads_encoder.pth`` is a ``torch.save``d dict: ``teacher`` = {``backbone.<key>``: tensor}, as in the published
checkpoint, and ``cads`` = the record. A ``.safetensors`` file has the same tensors under the same names, and the record
as JSON under ``cads`` in its text.
"""

TEACHER = "teacher"
RECORD = "cads"
BACKBONE_PREFIX = "backbone."
