"""The bones of a torso: spine and ribs, in the frame of `anatomy`."""

from collections.abc import Callable

import numpy as np

from nnunetv2_cads.demo.torsos.anatomy import LABELS, Build, Tissue, cavity
from nnunetv2_cads.demo.torsos.canvas import Part
from nnunetv2_cads.demo.torsos.shapes import ellipsoid, grown, oval, profile


def spine_parts(build: Build, tissue: Tissue, spine_line: Callable) -> list[Part]:
    """Vertebral bodies, discs, arches and spinous processes around a canal that belongs to the label."""
    period, start = build.vary(29, 0.05), build.rng.uniform(0, 29)
    width, depth = build.vary(22, 0.06), build.vary(18, 0.06)

    def level(z):
        return np.cos(2 * np.pi * (z - start) / period)  # 1 in the middle of a vertebra, -1 in the middle of a disc

    def centred(x, y, z):
        side, back = spine_line(z)
        size = profile(z, (-170, 190), (1.12, 0.8))
        return (x - side) / size, (y - back) / size

    def column(x, y, z):
        u, v = centred(x, y, z)
        return oval(u, v, width, depth, 2.6) - 1.2 + 1.5 * level(z)

    def discs(x, y, z):
        return np.maximum(column(x, y, z) + 1.5, (level(z) + 0.72) * 5)

    def arch(x, y, z):
        u, v = centred(x, y, z)
        ring = np.hypot(u, v - depth - 8) - 15
        process = np.maximum(np.abs(u) - 6.5, np.abs(v - depth - 23) - 12)
        wings = np.maximum(np.abs(u) - 36, np.abs(v - depth - 5) - 8)
        return np.minimum.reduce([ring, process, wings]) + 5 * (0.1 - level(z))

    def canal(x, y, z):
        u, v = centred(x, y, z)
        return np.hypot(u, v - depth - 8) - 9.5

    box = (5, 65, 10), (45, 55, 200)
    return [
        Part(arch, 0.75 * tissue.cortical, LABELS["spine"], *box),
        Part(column, tissue.cortical, LABELS["spine"], *box),
        Part(grown(column, -4), tissue.trabecular, LABELS["spine"], *box),
        Part(discs, 90, LABELS["spine"], *box),
        Part(canal, 30, LABELS["spine"], *box),
    ]


def rib_parts(build: Build, tissue: Tissue, spine_line: Callable) -> list[Part]:
    """Eight or nine pairs of ribs in the chest wall, falling towards the front, with cartilage and breastbone."""
    period, slope = build.vary(34, 0.04), build.vary(0.42, 0.12)
    height, thickness = build.vary(10.5, 0.06), build.vary(8, 0.06)
    start = build.rng.uniform(0, 34)
    front = -50 + float(build.shift(4, 1)[0])

    def bars(x, y, z):
        level = z + slope * (62 - y)
        off = period / np.pi * np.sin(np.pi * (level - start) / period)
        bar = (np.hypot((cavity(x, y, z) - 9) / thickness, off / height) - 1) * thickness
        floating = profile(level, (-80, -20), (0, -90))  # the lowest ribs end at the side
        return np.maximum.reduce([bar, -72 - level, level - 178, floating - y, 22 - np.abs(x - spine_line(z)[0])])

    def bone(x, y, z):
        return np.maximum(bars(x, y, z), front - y)

    breastbone = ellipsoid((0, -86, 85), (19, 7, 70), (-4, 0, 0))
    return [
        Part(bars, 110),
        Part(breastbone, 0.6 * tissue.cortical, 0, (0, -86, 85), (20, 30, 70)),
        Part(bone, tissue.cortical, LABELS["ribs"]),
        Part(grown(bone, -3), tissue.trabecular, LABELS["ribs"]),
    ]
