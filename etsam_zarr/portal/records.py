"""What the CryoET Data Portal says of tomograms and segmentation masks, checked as it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Shape3

# The fields of the portal's GraphQL types that are asked for; https://chanzuckerberg.github.io/cryoet-data-portal/.
TOMOGRAM_FIELDS = """
    id name sizeX sizeY sizeZ voxelSpacing processing reconstructionMethod
    isVisualizationDefault httpsOmezarrDir s3OmezarrDir fileSizeOmezarr
    run { id name datasetId }
"""
MASK_FIELDS = """
    id format httpsPath s3Path fileSize
    tomogramVoxelSpacing { voxelSpacing }
    annotationShape { shapeType annotation { id objectName groundTruthStatus annotationMethod
        run { id name datasetId } } }
"""

# The portal stores tomograms as float32 and segmentation masks as int8; its records do not say.
_TOMOGRAM_VOXEL_BYTES = 4


@dataclass(frozen=True)
class PortalTomogram:
    """A reconstruction of a run."""

    id: int
    name: str
    run_id: int
    run_name: str
    dataset_id: int
    shape: Shape3
    """Voxels in z, y, x."""
    voxel_spacing: float
    """Edge of a voxel in angstrom."""
    processing: str
    """``raw``, ``filtered``, ``denoised``, ``filtered_even`` or ``filtered_odd``."""
    method: str
    """How it was reconstructed, such as ``WBP`` or ``SIRT``."""
    curator_default: bool
    """Whether the portal's curators show it first."""
    https: str | None
    """Where its OME-Zarr lies; None where the portal has none."""
    s3: str | None
    """The same in the portal's bucket."""
    stored_bytes: int | None
    """What the OME-Zarr takes with all its levels, where the portal says it."""

    @property
    def bytes(self) -> int:
        """Uncompressed size of the finest level, as float32."""
        z, y, x = self.shape
        return z * y * x * _TOMOGRAM_VOXEL_BYTES

    @property
    def ids(self) -> dict[str, int | float | str]:
        """What a run notes of where its tomogram came from."""
        return {
            "dataset_id": self.dataset_id,
            "run_id": self.run_id,
            "run_name": self.run_name,
            "tomogram_id": self.id,
            "voxel_spacing": self.voxel_spacing,
            "processing": self.processing,
        }

    @classmethod
    def from_answer(cls, node: Mapping[str, Any]) -> PortalTomogram:
        """Read a ``Tomogram`` of the portal's answer.

        Raises
        ------
        InputError
            A field is absent or of another kind: the portal has changed.
        """
        try:
            run = node["run"]
            size = node.get("fileSizeOmezarr")
            return cls(
                id=int(node["id"]),
                name=str(node.get("name") or run["name"]),
                run_id=int(run["id"]),
                run_name=str(run["name"]),
                dataset_id=int(run["datasetId"]),
                shape=(int(node["sizeZ"]), int(node["sizeY"]), int(node["sizeX"])),
                voxel_spacing=float(node["voxelSpacing"]),
                processing=str(node["processing"]),
                method=str(node.get("reconstructionMethod") or ""),
                curator_default=bool(node.get("isVisualizationDefault")),
                https=node.get("httpsOmezarrDir") or None,
                s3=node.get("s3OmezarrDir") or None,
                stored_bytes=None if size is None else int(size),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _changed("tomogram", node, error) from error


@dataclass(frozen=True)
class PortalMask:
    """A segmentation mask as OME-Zarr: one file of an annotation."""

    id: int
    """Of the annotation file."""
    annotation_id: int
    object_name: str
    """What is marked, such as ``membrane``."""
    ground_truth: bool | None
    """Whether its authors call it ground truth."""
    method: str
    run_id: int
    run_name: str
    dataset_id: int
    voxel_spacing: float | None
    """Edge of a voxel in angstrom."""
    https: str
    s3: str | None
    stored_bytes: int | None

    @classmethod
    def from_answer(cls, node: Mapping[str, Any]) -> PortalMask:
        """Read an ``AnnotationFile`` of the portal's answer.

        Raises
        ------
        InputError
            A field is absent or of another kind: the portal has changed.
        """
        try:
            annotation = node["annotationShape"]["annotation"]
            run = annotation["run"]
            spacing, size, truth = (
                node.get("tomogramVoxelSpacing"),
                node.get("fileSize"),
                annotation["groundTruthStatus"],
            )
            return cls(
                id=int(node["id"]),
                annotation_id=int(annotation["id"]),
                object_name=str(annotation["objectName"]),
                ground_truth=None if truth is None else bool(truth),
                method=str(annotation.get("annotationMethod") or ""),
                run_id=int(run["id"]),
                run_name=str(run["name"]),
                dataset_id=int(run["datasetId"]),
                voxel_spacing=None if spacing is None else float(spacing["voxelSpacing"]),
                https=str(node["httpsPath"]),
                s3=node.get("s3Path") or None,
                stored_bytes=None if size is None else int(size),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _changed("annotation file", node, error) from error


def _changed(what: str, node: object, error: Exception) -> InputError:
    number = node.get("id") if isinstance(node, Mapping) else None
    return InputError(
        f"The CryoET Data Portal describes the {what} {number} in a way that this version does not know "
        f"({type(error).__name__}: {error}). Give the https address of its .zarr instead, and look for a newer version."
    )
