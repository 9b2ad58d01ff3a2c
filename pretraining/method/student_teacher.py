"""Student and teacher: the encoder with projection heads on its pooled stage maps.

Paper: CADS (IEEE TMI 2025); CADS method, section 4. The student has a head per stage, the teacher only the last
stage's, which teaches all of them (deep self-distillation). Keys are those of the published checkpoint.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.config import PretrainConfig
from pretraining.method.heads import ProjectionHead
from pretraining.method.places import Places, along_rays, cells, in_order_of_slices
from pretraining.method.points import PointHeads
from pretraining.method.restoration import RestorationDecoder


class Shown(NamedTuple):
    """Images of one kind, as a network is shown them."""

    images: Tensor  # (B, 1, [D,] H, W)
    noise: Tensor | None = None  # (branches, B) uniform numbers for stochastic depth; None: new ones


class StudentOutput(NamedTuple):
    """What the student makes of a batch."""

    logits: list[Tensor]  # per stage (3B, K); empty where it has no heads
    restored: Tensor | None  # (B, 1, D, H, W), see `pretraining.method.restoration.target`
    places: Places  # logits per stage (P, K)
    points: list[Tensor]  # features per level (2B, N, C) of unit length


class TeacherOutput(NamedTuple):
    """What the teacher makes of a batch."""

    logits: Tensor  # (2B, K)
    features: Tensor  # (2B, C), pooled, of which the logits were made
    places: Places  # logits (P, K), or None


class Student(nn.Module):
    """Encoder with four heads: ``head_1`` to ``head_3`` for stages 1 to 3 and ``head`` for the last.

    Args:
        config: of the run. One that does not distil has no heads, and its encoder takes CT alone; one that restores
            has a decoder for crops, one that contrasts points has heads for these.
    """

    head_names = ("head_1", "head_2", "head_3", "head")

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.losses = frozenset(config.weights)
        dimensions = (2, 3) if config.distils else (3,)
        self.backbone = PVTv2Encoder(1, dimensions, config.model.drop_path_rate, config.model.encoder_size)
        if config.distils:
            for name, dim in zip(self.head_names, self.backbone.channels[1:], strict=True):
                self.add_module(name, ProjectionHead(dim, config.model))
        if config.restores:
            self.decoder = RestorationDecoder(self.backbone.channels)
        if config.has_points:
            self.point_heads = PointHeads(self.backbone.channels, config.point.level_weights)
        if self.losses == {"points"}:
            self._fix_below(self.point_heads.levels[-1])

    def forward(
        self,
        ct: Shown | None,
        xray: Shown | None,
        crops: Shown | None = None,
        crop_xrays: Shown | None = None,
        pairs: Shown | None = None,
        points: Tensor | None = None,
    ) -> StudentOutput:
        """Views to logits, corrupted crops to restored ones, pairs to features; what the run has not is None.

        Args:
            ct: CT views (2B, 1, D, H, W), view by view.
            xray: X-rays (B, 1, H, W).
            crops: (B, 1, D, H, W), corrupted.
            crop_xrays: X-rays of the crops (B, 1, H, W).
            pairs: pairs of crops (2B, 1, D, H, W), first ones, then second ones.
            points: in the crops of the pairs (2B, N, 3), in voxels.
        """
        logits = [] if ct is None else self._logits(ct, xray)
        restored, places = None, Places([], [])
        if crops is not None:
            maps = self.backbone(*crops)
            restored, places = self.decoder(maps, crops.images.shape[2:]), self._places(maps, crop_xrays)
        features = [] if pairs is None else self.features(pairs.images, points, pairs.noise)
        return StudentOutput(logits, restored, places, features)

    def restore(self, crops: Tensor, noise: Tensor | None = None) -> Tensor:
        """Corrupted crops (B, 1, D, H, W) -> restored ones, in units of the window."""
        return self.decoder(self.backbone(crops, noise), crops.shape[2:])

    def _fix_below(self, level: int) -> None:
        """What is deeper than the last level has no gradient, for which ranks would wait: it is not trained."""
        for stage in range(level + 1, len(self.backbone.channels)):
            for part in ("patch_embed", "block", "norm"):
                getattr(self.backbone, f"{part}{stage}").requires_grad_(False)
        if level == 0:  # the stem is the first layers of stage 1's embedding
            self.backbone.patch_embed1.proj.requires_grad_(True)

    def features(self, crops: Tensor, points: Tensor, noise: Tensor | None = None) -> list[Tensor]:
        """Features per level (B, N, C) of points (B, N, 3) of crops (B, 1, D, H, W)."""
        return self.point_heads(self.point_maps(crops, noise), points)

    def point_maps(self, crops: Tensor, noise: Tensor | None = None) -> list[Tensor]:
        """Maps of crops (B, 1, D, H, W), from the stem's to the deepest whose points are contrasted."""
        return self.backbone(crops, noise, self.point_heads.levels[-1] + 1)

    def _logits(self, ct: Shown, xray: Shown) -> list[Tensor]:
        maps = zip(self.backbone(*ct)[1:], self.backbone(*xray)[1:], strict=True)
        pooled = [torch.cat([pool(ct_map), pool(xray_map)]) for ct_map, xray_map in maps]
        return self._heads(pooled)

    def _places(self, maps: list[Tensor], xrays: Shown | None) -> Places:
        depth, height, width = maps[-1].shape[2:]
        tokens = [cells(ct_map, (depth, height, width)) for ct_map in maps[1:]] if "tokens" in self.losses else []
        xray_maps = [] if xrays is None else self.backbone(*xrays)[1:]
        rays = [cells(in_order_of_slices(xray_map), (depth, width)) for xray_map in xray_maps]
        return Places(*(self._heads(features) if features else [] for features in (tokens, rays)))

    def _heads(self, features: list[Tensor]) -> list[Tensor]:
        """Features per stage (N, C) -> logits per stage (N, K)."""
        return [getattr(self, name)(of_stage) for name, of_stage in zip(self.head_names, features, strict=True)]

    def drop_last_layer_gradients(self) -> None:
        """Freeze the heads' last layers for a step: AdamW skips what has no gradient, weight decay included."""
        for name in self.head_names:
            if hasattr(self, name):
                getattr(self, name).last_layer.weight_v.grad = None


class Teacher(nn.Module):
    """Encoder with the last stage's head: an exponential moving average of the student, without gradients.

    Where the student has no heads, the teacher is its encoder's average alone, which the run hands on.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.losses = student.losses
        self.backbone = copy.deepcopy(student.backbone)
        if hasattr(student, "head"):
            self.head = copy.deepcopy(student.head)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, ct: Shown, crops: Shown | None = None) -> TeacherOutput:
        """CT views, and sound crops where the run distils place by place, to logits.

        Args:
            ct: CT views (2B, 1, D, H, W), view by view.
            crops: (B, 1, D, H, W), as the encoder sees them.
        """
        features = pool(self.backbone(*ct)[-1])
        return TeacherOutput(self.head(features), features, self._places(crops))

    def _places(self, crops: Shown | None) -> Places:
        if crops is None:
            return Places(None, None)
        last = self.backbone(*crops)[-1]
        depth, height, width = last.shape[2:]
        return Places(
            self.head(cells(last, (depth, height, width))) if "tokens" in self.losses else None,
            self.head(cells(along_rays(last), (depth, width))) if "rays" in self.losses else None,
        )

    @torch.no_grad()
    def update(self, student: Student, rate: Tensor) -> None:
        """Move every weight to (1 - ``rate``) x own + ``rate`` x the student's; ``rate``: () on the weights' device."""
        source = dict(student.named_parameters())
        own = dict(self.named_parameters())
        torch._foreach_lerp_(list(own.values()), [source[name].detach() for name in own], [rate] * len(own))


def pool(feature_map: Tensor) -> Tensor:
    """Mean over space: (B, C, [D,] H, W) -> (B, C)."""
    return feature_map.flatten(2).mean(2)
