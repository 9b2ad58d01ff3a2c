"""One case of a download: checked, and put into the dataset."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2_cads.tasks.find_cases import Case
from nnunetv2_cads.tasks.nifti_file import UNIT_SPACING, LeftOut, NiftiFile, open_nifti
from nnunetv2_cads.tasks.sources import Source
from nnunetv2_cads.tasks.write_files import write_image, write_labels
from pretraining.ct.checks import spacing_text
from pretraining.system.errors import environment_error, is_environment_error

NO_GEOMETRY = "label map without a geometry in its header: that of the image was taken"
OTHER_GEOMETRY = "label map whose header has another spacing or origin: those of the image were taken"
STORED_AS_FLOAT = "label map of floating-point or scaled numbers: written as whole ones"
EMPTY = "label map with background alone"
TURNED = "axes in another order: brought into left-right, front-back, foot-head"
FOURTH_AXIS = "header with a fourth axis of 1: dropped"
NO_SPACING = "header that states 1 x 1 x 1 mm, as one without geometry does: kept, but most likely wrong"
NO_ORIENTATION = "header without an orientation: kept as it is stored"
"""Notes: what was found in a case and done about it; the same words for every such case."""


@dataclass(frozen=True)
class Job:
    """What all cases of a conversion have in common.

    Attributes:
        source: the task's download.
        dataset: folder of the dataset; its subfolders exist.
        ending: suffix of all files in it.
    """

    source: Source
    dataset: Path
    ending: str

    def outputs(self, case: Case) -> tuple[Path, ...]:
        """The files that a case becomes: its image and, where it has one, its label map."""
        part = "Ts" if case.label is None else "Tr"
        image = self.dataset / f"images{part}" / f"{case.name}_0000{self.ending}"
        return (image,) if case.label is None else (image, self.dataset / "labelsTr" / f"{case.name}{self.ending}")


def convert_case(case: Case, job: Job) -> list[str]:
    """Check a case and put its files into the dataset.

    Returns:
        Notes, as above.

    Raises:
        LeftOut: the case cannot be used.
        UserError: the dataset cannot be written.
    """
    image = open_nifti(case.image)
    values = image.read_image()
    _check_axes(image)
    notes = _image_notes(image)
    label, label_values = None, None
    if case.label is not None:
        label = open_nifti(case.label)
        label_values, label_notes = _checked_labels(label, image, job.source)
        notes += label_notes
    outputs = job.outputs(case)
    try:
        write_image(outputs[0], image, values)
        if label is not None:
            write_labels(outputs[1], label, label_values, image)
    except OSError as error:
        if not is_environment_error(error):
            raise
        raise environment_error(error, job.dataset) from None
    return notes


def _check_axes(image: NiftiFile) -> None:
    """Refuse a header that gives the body's axes to the wrong axes of the file.

    The pixels of CT are square in axial planes. The first release of KiTS19, of March 2019, had headers by which they
    are square in another plane.
    """
    x, y, z = image.body_spacing_mm
    if not np.isclose(x, y, rtol=1e-3) and (np.isclose(z, x, rtol=1e-3) or np.isclose(z, y, rtol=1e-3)):
        raise LeftOut(
            f"{image.path}: has pixels of {spacing_text((x, y, z))} along left-right, front-back and foot-head, which "
            "are not square in axial planes, so its header has the axes in the wrong order; download the corrected file"
        )


def _image_notes(image: NiftiFile) -> list[str]:
    found = {
        TURNED: not image.axes_in_order,
        FOURTH_AXIS: not image.has_three_axes,
        NO_SPACING: image.spacing_xyz_mm == UNIT_SPACING,
        NO_ORIENTATION: not image.states_orientation,
    }
    return [note for note, is_so in found.items() if is_so]


def _checked_labels(label: NiftiFile, image: NiftiFile, source: Source) -> tuple[np.ndarray, list[str]]:
    """The label map's voxels (z, y, x), and notes.

    Raises:
        LeftOut: it is damaged, has other values than the task's, or does not lie where the image lies.
    """
    notes = _geometry_notes(label, image)
    values = label.read_labels()
    low, high = values.min(), values.max()  # NaN where there is one
    whole = values.dtype.kind in "iu" or np.array_equal(values, np.rint(values))
    highest = max(source.labels.values())
    if not (whole and low >= 0 and high <= highest):
        found = np.unique(values)
        more = ", ..." if len(found) > 10 else ""
        raise LeftOut(
            f"{label.path}: has the values {', '.join(f'{value:g}' for value in found[:10])}{more}, but the labels of "
            f"{source.title} are 0 to {highest}; download it again"
        )
    if values.dtype.kind == "f":
        notes.append(STORED_AS_FLOAT)
    if high == 0:
        notes.append(EMPTY)
    return values, notes


def _geometry_notes(label: NiftiFile, image: NiftiFile) -> list[str]:
    """What is done about a label map's geometry; its image's is taken where both have the same voxels.

    Raises:
        LeftOut: the label map has other voxels, or its header states that its axes run in other directions.
    """
    if label.size_xyz != image.size_xyz:
        sizes = [" x ".join(map(str, file.size_xyz)) for file in (label, image)]
        raise LeftOut(f"{label.path}: has {sizes[0]} voxels, its image {sizes[1]}; download both again")
    if label.has_grid_of(image):
        return []
    if not (label.states_geometry and label.states_orientation):
        return [NO_GEOMETRY]
    if not label.has_directions_of(image):
        raise LeftOut(
            f"{label.path}: has a header by which its axes run in other directions than those of its image, so where "
            "it lies is not certain; look at both in a viewer and correct the header that is wrong"
        )
    return [OTHER_GEOMETRY]
