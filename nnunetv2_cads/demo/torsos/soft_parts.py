"""The soft parts of a torso: body wall, chest, abdomen and the great vessels, in the frame of `anatomy`."""

from collections.abc import Callable

import numpy as np

from nnunetv2_cads.demo.torsos.anatomy import LABELS, Build, Tissue, body, cavity
from nnunetv2_cads.demo.torsos.canvas import Part
from nnunetv2_cads.demo.torsos.shapes import Implicit, ellipsoid, grown, intersection, oval, profile, smooth_union, tube


def wall_parts(build: Build, tissue: Tissue) -> list[Part]:
    """Table, skin, fat under the skin, muscle, and the fat that fills the cavity."""
    fat = build.vary(12, 0.35)

    def table(x, y, z):  # a hollowed board that just touches the deepest point of the back
        return np.maximum(np.abs(y - 118 + 0.0012 * x * x) - 3, np.abs(x) - 180)

    def outline(x, y, z):
        return oval(x, y, *body(z))

    def muscle(x, y, z):
        width, depth = body(z)
        return oval(x, y, width - fat, depth - 0.9 * fat)

    return [
        Part(table, -300),
        Part(outline, 10),
        Part(grown(outline, -3), -100),
        Part(muscle, 55),
        Part(cavity, tissue.surround),
    ]


def chest_parts(build: Build, tissue: Tissue, diaphragm: Callable) -> list[Part]:
    """Lungs, heart and windpipe."""
    half_width = build.vary(27, 0.12)
    heart, heart_centre, heart_box = build.blob((24, -26, 46), (62, 45, 46), (0, 25, 32), wobble=0.06)

    def mediastinum(x, y, z):
        width = half_width * profile(z, (0, 60, 120, 190), (1.1, 1.1, 0.95, 0.7)) * profile(y, (-75, -35), (0.4, 1))
        return np.abs(x - 3) - width

    def lungs(x, y, z):
        return np.maximum.reduce([cavity(x, y, z) + 3, diaphragm(x, y) - z + 2, -mediastinum(x, y, z)])

    def above(x, y, z):
        return diaphragm(x, y) - z + 1

    windpipe = tube([(0, 2, 80), (2, -2, 210)], build.vary(9))
    return [
        Part(lungs, tissue.lung, LABELS["lungs"]),
        Part(intersection(heart, above), 45 + 0.85 * (tissue.blood - 45), 0, heart_centre, heart_box),
        Part(windpipe, -980, 0, (0, 0, 145), (15, 15, 70)),
    ]


def abdomen_parts(build: Build, tissue: Tissue, diaphragm: Callable) -> list[Part]:
    """Bowel, stomach, liver, spleen and kidneys, with a thin layer of fat between neighbours."""

    def room(x, y, z):
        return np.maximum(cavity(x, y, z) + 4, z - diaphragm(x, y) + 3)

    parts = _bowel(build, tissue, room)
    stomach, centre, box = build.blob((42, -28, -38), (46, 36, 34), (0, 35, -25), wobble=0.12)
    parts += _organ(stomach, room, tissue, 0, centre, box, 5)
    gas = _upper_part(stomach, centre[1] - 12)
    parts.append(Part(intersection(grown(gas, -4), room), -900, 0, centre, box))

    right_lobe, centre, box = build.blob((-62, -10, -34), (75, 70, 76), wobble=0.06)
    left_lobe = build.blob((0, -36, -16), (64, 36, 36), (0, 12, 8), wobble=0.08)[0]

    def liver(x, y, z):
        return smooth_union(right_lobe(x, y, z), left_lobe(x, y, z), 14)

    parts += _organ(liver, room, tissue, LABELS["liver"], (-35, -15, -35), (105, 75, 85), 5)
    spleen, centre, box = build.blob((86, 24, -32), (32, 45, 50), (0, -15, 15))
    parts += _organ(spleen, room, tissue, LABELS["spleen"], centre, box, 5)
    for side, name, height in ((-1, "kidney_right", -102), (1, "kidney_left", -90)):
        outer, centre, box = build.blob((58 * side, 34, height), (29, 25, 54), (12, -8 * side, 0), wobble=0.06)
        hilum = ellipsoid((centre[0] - 30 * side, centre[1] - 6, centre[2]), (18, 14, 17))
        kidney = _without(outer, hilum)
        bed_centre = (centre[0] + 4 * side, centre[1] + 10, centre[2] - 14)
        bed = intersection(ellipsoid(bed_centre, (42, 38, 70)), room)  # the fat around the kidney indents the liver
        parts.append(Part(bed, tissue.surround, 0, bed_centre, (42, 38, 70)))
        parts += _organ(kidney, room, tissue, LABELS[name], centre, box, build.vary(5, 0.3))
    return parts


def _bowel(build: Build, tissue: Tissue, room: Implicit) -> list[Part]:
    """Loops of bowel in front of the kidneys, at the HU of the organs or below, some with gas on top."""
    parts = []
    for column in np.linspace(-75, 75, 4):
        for height in (-75, -115, -155):
            radii = build.rng.uniform(16, 26, 3)
            loop, centre, box = build.blob((column, -38, height), radii, shift_mm=9, wobble=0.2)
            content = tissue.organ if build.rng.random() < 0.5 else build.rng.uniform(10, 40)
            parts.append(Part(intersection(loop, room), content, 0, centre, box))
            if build.rng.random() < 0.35:
                gas = intersection(grown(_upper_part(loop, centre[1] - 4), -3), room)
                parts.append(Part(gas, -850, 0, centre, box))
    for side in (-1, 1):
        psoas = tube([(28 * side, 40, -70), (44 * side, 30, -180)], build.vary(17))
        parts.append(Part(intersection(psoas, room), 55, 0, (38 * side, 35, -125), (40, 40, 80)))
    return parts


def _organ(shape, room, tissue, label, centre, box, fat_mm) -> list[Part]:
    """An organ below the diaphragm, after a shell of the surrounding tissue that sets it off from its neighbours."""
    shell = intersection(grown(shape, fat_mm), room)
    return [
        Part(shell, tissue.surround, 0, centre, box),
        Part(intersection(shape, grown(room, -fat_mm / 2)), tissue.organ, label, centre, box),
    ]


def _without(shape: Implicit, carved: Implicit) -> Implicit:
    return lambda x, y, z: np.maximum(shape(x, y, z), -carved(x, y, z))


def _upper_part(shape: Implicit, level_mm: float) -> Implicit:
    """What lies in front of ``level_mm``: gas collects there, since the patient lies on the back."""
    return lambda x, y, z: np.maximum(shape(x, y, z), y - level_mm)


def vessel_parts(build: Build, tissue: Tissue, spine_line: Callable) -> list[Part]:
    """Inferior vena cava (at the HU of the organs) and aorta with its arch, both in front of the spine."""
    aorta_radius, cava_radius = build.vary(14, 0.08), build.vary(12, 0.1)
    offset = build.shift(2.0)
    down = [(13 + offset[0] + spine_line(z)[0], spine_line(z)[1] - 29 + offset[1], z) for z in range(-180, 101, 35)]
    top = np.array(down[-1])
    rise = np.array([-14 + offset[2], -30, 92])
    turn = [tuple(rise + (top - rise) * t + np.array([0, 0, 30 * np.sin(np.pi * t)])) for t in np.linspace(0, 1, 7)]
    aorta = tube([(rise[0] + 8, rise[1] + 4, 60), *turn, *down[::-1][1:]], aorta_radius)
    cava = tube([(-20 + spine_line(z)[0], spine_line(z)[1] - 28, z) for z in (-180, -120, -60, 10)], cava_radius)
    return [
        Part(grown(cava, 2), tissue.surround, 0, (-20, 10, -85), (20, 25, 110)),
        Part(cava, tissue.organ, 0, (-20, 10, -85), (20, 25, 110)),
        Part(grown(aorta, 1.5), tissue.surround, 0, (2, 5, -25), (35, 45, 165)),
        Part(aorta, tissue.blood, LABELS["aorta"], (2, 5, -25), (35, 45, 165)),
    ]
