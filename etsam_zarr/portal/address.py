"""What people write to name something on the CryoET Data Portal: ``portal:...``, links of its web site, its files.

::

    portal:8354                             the run 8354
    portal:10160/ycw2013-01-03-15           the run of that name in dataset 10160
    portal:8354@16.145                      its tomogram with voxels of 16.145 A
    portal:8354?processing=raw              its tomogram that was processed so
    portal:8354?default                     the one that the portal's curators show first
    portal:tomogram/4711                    the tomogram 4711
    portal:annotation/26081,12765@10        segmentation masks of annotations, united
    portal:mask/9001                        a segmentation mask by the id of its annotation file
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, parse_qsl, urlsplit, urlunsplit

from etsam_zarr.errors import InputError

PREFIX = "portal:"
WEB_HOST = "cryoetdataportal.czscience.com"

# Links of the web site carry what was chosen in its download dialogue, by these names.
_WEB_SPACING, _WEB_PROCESSING, _WEB_TOMOGRAM = "tomogram-sampling", "tomogram-processing", "download-tomogram"
# {dataset}/{run}/Reconstructions/VoxelSpacing{v}/...; before 2025 the third part was Tomograms.
_LAYOUT = re.compile(
    r"(?P<dataset>\d+)/(?P<run>[^/]+)/(?:Reconstructions|Tomograms)/VoxelSpacing(?P<spacing>\d+(?:\.\d+)?)/"
    r".+\.(?P<kind>mrc|zarr)/?$"
)
_FORMS = (
    "portal:RUN_ID, portal:DATASET_ID/RUN_NAME (both with @VOXEL_SPACING where a run has several tomograms), "
    "portal:tomogram/ID, portal:annotation/ID,ID or portal:mask/ID"
)


@dataclass(frozen=True)
class Choice:
    """Which of a run's tomograms is meant; what is None or False leaves all of them."""

    tomogram_id: int | None = None
    voxel_spacing: float | None = None
    """In angstrom."""
    processing: str | None = None
    """``raw``, ``filtered``, ``denoised``, ``filtered_even`` or ``filtered_odd``."""
    curator_default: bool = False
    """The one that the portal's curators show first."""


@dataclass(frozen=True)
class PortalAddress:
    """Something on the portal: a run, a tomogram, or segmentation masks."""

    run_id: int | None = None
    dataset_id: int | None = None
    run_name: str | None = None
    annotation_ids: tuple[int, ...] = ()
    mask_ids: tuple[int, ...] = ()
    """Ids of annotation files."""
    choice: Choice = field(default_factory=Choice)

    @property
    def is_mask(self) -> bool:
        """Whether this names segmentation masks and not a tomogram."""
        return bool(self.annotation_ids or self.mask_ids)

    def narrowed(self, choice: Choice) -> PortalAddress:
        """Return this address with what a second choice says put over its own."""
        own = self.choice
        return replace(
            self,
            choice=Choice(
                choice.tomogram_id if choice.tomogram_id is not None else own.tomogram_id,
                choice.voxel_spacing if choice.voxel_spacing is not None else own.voxel_spacing,
                choice.processing or own.processing,
                choice.curator_default or own.curator_default,
            ),
        )

    def __str__(self) -> str:
        """Return the address as :func:`parse_address` reads it."""
        choice = self.choice
        tomogram = choice.tomogram_id
        if self.annotation_ids:
            target = f"annotation/{','.join(map(str, self.annotation_ids))}"
        elif self.mask_ids:
            target = f"mask/{','.join(map(str, self.mask_ids))}"
        elif self.run_id is not None:
            target = str(self.run_id)
        elif self.run_name is not None:
            target = f"{self.dataset_id}/{self.run_name}"
        else:
            target, tomogram = f"tomogram/{tomogram}", None
        spacing = "" if choice.voxel_spacing is None else f"@{choice.voxel_spacing:g}"
        queries = [
            *([f"tomogram={tomogram}"] if tomogram is not None else []),
            *([f"processing={choice.processing}"] if choice.processing else []),
            *(["default"] if choice.curator_default else []),
        ]
        return f"{PREFIX}{target}{spacing}{'?' if queries else ''}{'&'.join(queries)}"


def parse_address(text: str) -> PortalAddress | None:
    """Read an address of the portal; None for everything that is none.

    >>> parse_address("portal:10160/ycw2013-01-03-15@16.145").choice.voxel_spacing
    16.145
    >>> str(parse_address("https://cryoetdataportal.czscience.com/runs/8354?tomogram-processing=raw"))
    'portal:8354?processing=raw'
    >>> parse_address("tomo.mrc") is None
    True

    Raises
    ------
    InputError
        It is meant as an address of the portal and is malformed.
    """
    if text.startswith(PREFIX):
        return _parse_own(text)
    parts = urlsplit(text) if text.startswith(("http://", "https://")) else None
    if parts is not None and (parts.hostname or "").removeprefix("www.") == WEB_HOST:
        return _parse_link(text)
    return None


def zarr_sibling(url: str) -> str | None:
    """Return the OME-Zarr that lies beside an ``.mrc`` of the portal; None for all other addresses.

    Every volume of the portal lies there in both formats; an ``.mrc`` cannot be read in parts over the network.
    Mirrors keep the portal's layout, so the host does not matter.

    >>> zarr_sibling("s3://b/10160/r1/Reconstructions/VoxelSpacing16.145/Tomograms/100/r1.mrc")
    's3://b/10160/r1/Reconstructions/VoxelSpacing16.145/Tomograms/100/r1.zarr'
    """
    if not url.startswith(("http://", "https://", "s3://")):
        return None
    parts = urlsplit(url)
    match = _LAYOUT.search(parts.path)
    if match is None or match["kind"] != "mrc":
        return None
    return urlunsplit(parts._replace(path=f"{parts.path.removesuffix('/').removesuffix('.mrc')}.zarr"))


def ids_of_layout(url: str) -> dict[str, int | float | str]:
    """Return what the path of a file of the portal says: ``dataset_id``, ``run_name``, ``voxel_spacing``.

    Empty for everything that does not lie as on the portal.
    """
    match = _LAYOUT.search(urlsplit(url).path) if "://" in url else None
    if match is None:
        return {}
    return {
        "dataset_id": int(match["dataset"]),
        "run_name": match["run"],
        "voxel_spacing": float(match["spacing"]),
    }


def _parse_own(text: str) -> PortalAddress:
    target, _, query = text.removeprefix(PREFIX).removeprefix("//").partition("?")
    target, spacing = _cut_spacing(target.strip("/"), text)
    kind, separator, rest = target.partition("/")
    choice = _choice(query, spacing, text)
    if separator and kind in ("annotation", "annotations"):
        return PortalAddress(annotation_ids=_ids(rest, text), choice=choice)
    if separator and kind in ("mask", "masks"):
        return PortalAddress(mask_ids=_ids(rest, text), choice=choice)
    if separator and kind in ("tomogram", "tomograms"):
        return PortalAddress(choice=replace(choice, tomogram_id=_id(rest, text)))
    if separator and kind.isdecimal() and rest and "/" not in rest:
        return PortalAddress(dataset_id=int(kind), run_name=rest, choice=choice)
    if not separator and kind.isdecimal():
        return PortalAddress(run_id=int(kind), choice=choice)
    raise InputError(f"{text!r} is no address of the CryoET Data Portal. It takes {_FORMS}.")


def _cut_spacing(target: str, text: str) -> tuple[str, float | None]:
    before, separator, after = target.rpartition("@")
    if not separator:
        return target, None
    try:
        spacing = float(after)
    except ValueError:
        spacing = 0.0
    if not 0 < spacing < float("inf"):
        raise InputError(
            f"{text!r} has {after!r} behind the @, where the voxel spacing in angstrom belongs, such as @16.145."
        )
    return before, spacing


def _choice(query: str, spacing: float | None, text: str) -> Choice:
    given = dict(parse_qsl(query, keep_blank_values=True))
    known = {"tomogram", "processing", "default"}
    if set(given) - known:
        raise InputError(
            f"{text!r} asks for {', '.join(sorted(set(given) - known))} behind the question mark, which takes "
            "tomogram=ID, processing=raw and default."
        )
    tomogram = _id(given["tomogram"], text) if "tomogram" in given else None
    return Choice(tomogram, spacing, given.get("processing") or None, "default" in given)


def _parse_link(text: str) -> PortalAddress:
    parts = urlsplit(text)
    kind, _, rest = parts.path.strip("/").partition("/")
    identifier = rest.partition("/")[0]
    if kind == "datasets" and identifier.isdecimal():
        raise InputError(
            f"{text} is the page of a dataset, which has many runs. See them with 'etsam-zarr portal list --dataset "
            f"{identifier}' and give one as portal:RUN_ID, or all of them in a list to 'etsam-zarr batch'."
        )
    if kind != "runs" or not identifier.isdecimal():
        raise InputError(
            f"{text} is a page of the CryoET Data Portal that shows no run. Give the link of a run "
            f"(https://{WEB_HOST}/runs/RUN_ID), or {_FORMS}."
        )
    query = parse_qs(parts.query)

    def last(name: str) -> str | None:
        return query[name][-1] if name in query else None

    spacing, tomogram = last(_WEB_SPACING), last(_WEB_TOMOGRAM)
    return PortalAddress(
        run_id=int(identifier),
        choice=Choice(
            int(tomogram) if tomogram is not None and tomogram.isdecimal() else None,
            float(spacing) if spacing is not None and re.fullmatch(r"\d+(\.\d+)?", spacing) else None,
            last(_WEB_PROCESSING),
        ),
    )


def _ids(listed: str, text: str) -> tuple[int, ...]:
    # ETSAM's tables put a bar between ids; a comma needs no quotes in a shell.
    return tuple(_id(part, text) for part in re.split(r"[,|]", listed))


def _id(part: str, text: str) -> int:
    if not part.strip().isdecimal():
        raise InputError(f"{text!r} has {part!r} where the CryoET Data Portal has a number as id. It takes {_FORMS}.")
    return int(part)
