"""A CryoET Data Portal on this machine: its GraphQL types (those that are asked for) and its files.

The schema is a part of the portal's own, with its type, field and argument names; questions are validated against it
by graphql-core, so that a name that the portal does not know fails here as it would there.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
from graphql import build_schema, graphql_sync
from portal_store import write_portal_store

SCHEMA = """
enum tomogram_processing_enum { denoised filtered raw filtered_even filtered_odd }
enum tomogram_reconstruction_method_enum { Fourier_Space SART SIRT WBP Unknown }
enum annotation_file_shape_type_enum {
  SegmentationMask OrientedPoint Point InstanceSegmentation InstanceSegmentationMask Mesh GlobalCaption
  AnnotationCaption
}
input IntComparators { _eq: Int _neq: Int _in: [Int!] _nin: [Int!] _gt: Int _gte: Int _lt: Int _lte: Int }
input StrComparators { _eq: String _neq: String _in: [String!] _nin: [String!] _like: String _ilike: String }
input Annotation_file_shape_type_enumEnumComparators {
  _eq: annotation_file_shape_type_enum _in: [annotation_file_shape_type_enum!]
}
input RunWhereClause { id: IntComparators name: StrComparators datasetId: IntComparators }
input TomogramWhereClause { id: IntComparators runId: IntComparators run: RunWhereClause }
input AnnotationWhereClause {
  id: IntComparators runId: IntComparators run: RunWhereClause objectName: StrComparators
}
input AnnotationShapeWhereClause {
  annotationId: IntComparators annotation: AnnotationWhereClause
  shapeType: Annotation_file_shape_type_enumEnumComparators
}
input AnnotationFileWhereClause { id: IntComparators annotationShape: AnnotationShapeWhereClause }
type Run { id: Int! name: String! datasetId: Int! }
type Tomogram {
  id: Int! name: String runId: Int run: Run sizeX: Int! sizeY: Int! sizeZ: Int! voxelSpacing: Float!
  reconstructionMethod: tomogram_reconstruction_method_enum! processing: tomogram_processing_enum!
  isVisualizationDefault: Boolean httpsOmezarrDir: String s3OmezarrDir: String fileSizeOmezarr: Float
}
type TomogramVoxelSpacing { id: Int! voxelSpacing: Float! }
type Annotation {
  id: Int! runId: Int run: Run objectName: String! groundTruthStatus: Boolean annotationMethod: String!
}
type AnnotationShape {
  id: Int! annotationId: Int annotation: Annotation shapeType: annotation_file_shape_type_enum
}
type AnnotationFile {
  id: Int! annotationShape: AnnotationShape tomogramVoxelSpacing: TomogramVoxelSpacing
  format: String! s3Path: String! fileSize: Float httpsPath: String!
}
type Query {
  tomograms(where: TomogramWhereClause = null): [Tomogram!]!
  annotationFiles(where: AnnotationFileWhereClause = null): [AnnotationFile!]!
}
"""

Node = dict[str, Any]


@dataclass
class Stub:
    """The portal: what it holds, what it was asked, and how it misbehaves."""

    folder: Path
    """Its files."""
    url: str = ""
    tomograms: list[Node] = field(default_factory=list)
    masks: list[Node] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The variables of each question."""
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """Files that were fetched."""
    statuses: list[int] = field(default_factory=list)
    """HTTP statuses of the next answers, first to last, instead of an answer."""
    retry_after: str | None = None
    """Sent with each of these statuses."""
    body: bytes | None = None
    """Sent instead of any answer."""
    delay: float = 0.0
    """Seconds before each answer."""

    def add_tomogram(
        self, number: int, run: Node, voxels: npt.NDArray[Any] | None = None, *, spacing: float = 10.0,
        processing: str = "raw", default: bool = False, zarr_there: bool = True,
        shape: tuple[int, int, int] | None = None,
    ) -> str:  # fmt: skip
        """Publish a reconstruction; return the path of its .zarr below the server's address."""
        path = (
            f"{run['datasetId']}/{run['name']}/Reconstructions/VoxelSpacing{spacing:.3f}/Tomograms/{number}/"
            f"{run['name']}.zarr"
        )
        z, y, x = voxels.shape if voxels is not None else shape or (4, 5, 6)
        if voxels is not None:
            write_portal_store(self.folder / path, voxels, voxel_size=spacing)
        self.tomograms.append(
            {
                "id": number, "name": run["name"], "runId": run["id"], "run": run, "sizeX": x, "sizeY": y, "sizeZ": z,
                "voxelSpacing": spacing, "reconstructionMethod": "WBP", "processing": processing,
                "isVisualizationDefault": default,
                "httpsOmezarrDir": f"{self.url}/{path}" if zarr_there else None,
                "s3OmezarrDir": f"s3://cryoet-data-portal-public/{path}" if zarr_there else None,
                "fileSizeOmezarr": 1234567.0,
            }
        )  # fmt: skip
        return path

    def add_mask(
        self, number: int, annotation: int, run: Node, voxels: npt.NDArray[Any] | None = None, *, spacing: float = 10.0,
        name: str = "membrane", shape_type: str = "SegmentationMask",
    ) -> str:  # fmt: skip
        """Publish a segmentation mask, as Zarr and as MRC; return the path of its .zarr."""
        path = (
            f"{run['datasetId']}/{run['name']}/Reconstructions/VoxelSpacing{spacing:.3f}/Annotations/{annotation}/"
            f"{name.replace(' ', '_')}-1.0_segmentationmask.zarr"
        )
        if voxels is not None:
            write_portal_store(self.folder / path, voxels.astype(np.int8), voxel_size=spacing)
        shape = {
            "id": annotation * 10, "annotationId": annotation, "shapeType": shape_type,
            "annotation": {
                "id": annotation, "runId": run["id"], "run": run, "objectName": name, "groundTruthStatus": True,
                "annotationMethod": "by hand",
            },
        }  # fmt: skip
        for offset, kind in ((0, "zarr"), (1, "mrc")):
            place = f"{path.removesuffix('zarr')}{kind}"
            self.masks.append(
                {
                    "id": number + offset, "annotationShape": shape, "format": kind, "fileSize": 999.0,
                    "tomogramVoxelSpacing": {"id": 1, "voxelSpacing": spacing},
                    "httpsPath": f"{self.url}/{place}", "s3Path": f"s3://cryoet-data-portal-public/{place}",
                }
            )  # fmt: skip
        return path

    def answer(self, question: dict[str, Any]) -> bytes:
        self.asked.append(question["variables"])
        root = {
            "tomograms": lambda _info, where=None: [t for t in self.tomograms if _fits(t, where)],
            "annotationFiles": lambda _info, where=None: [m for m in self.masks if _fits(m, where)],
        }
        result = graphql_sync(_schema(), question["query"], root, variable_values=question["variables"])
        return json.dumps(result.formatted).encode()


@functools.cache
def _schema() -> Any:
    return build_schema(SCHEMA)


def _fits(node: Node, where: Node | None) -> bool:
    """Whether a record fits a where clause: comparators at the leaves, all of which must hold."""
    for name, clause in (where or {}).items():
        value = node[name]
        if not any(key.startswith("_") for key in clause):
            if not _fits(value, clause):
                return False
            continue
        for comparator, wanted in clause.items():
            holds = {
                "_eq": lambda value, wanted: value == wanted,
                "_in": lambda value, wanted: value in wanted,
                "_ilike": lambda value, wanted: wanted.strip("%").lower() in value.lower(),
            }[comparator]
            if not holds(value, wanted):
                return False
    return True


def run_record(number: int, name: str, dataset: int) -> Node:
    return {"id": number, "name": name, "datasetId": dataset}


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Stub]:
    """Serve a portal's questions at /graphql and its files beside them."""
    stub = Stub(folder)
    folder.mkdir(parents=True, exist_ok=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            stub.headers.append(dict(self.headers))
            time.sleep(stub.delay)
            status = stub.statuses.pop(0) if stub.statuses else 200
            if stub.body is not None:
                self._send(status, stub.body, "text/html")
            elif status != 200:
                extra = {} if stub.retry_after is None else {"Retry-After": stub.retry_after}
                self._send(status, b"<html>busy</html>", "text/html", extra=extra)
            else:
                self._send(200, stub.answer(json.loads(content)), "application/json")

        def do_GET(self) -> None:
            self._file(body=True)

        def do_HEAD(self) -> None:
            self._file(body=False)

        def _file(self, *, body: bool) -> None:
            stub.paths.append(self.path)
            place = folder / unquote(self.path).lstrip("/")
            if not place.is_file():
                self._send(404, b"", "text/plain")
                return
            content = place.read_bytes()
            asked = self.headers.get("Range")
            status, extra = 200, {}
            if asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start = int(first) if first else max(0, len(content) - int(last))
                stop = min(len(content), int(last) + 1) if first and last else len(content)
                status, extra = 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
                content = content[start:stop]
            self._send(status, content, "application/octet-stream", body=body, extra=extra)

        def _send(
            self, status: int, content: bytes, kind: str, *, body: bool = True, extra: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Type": kind, "Content-Length": str(len(content)),
                "Last-Modified": "Sun, 01 Jun 2025 00:00:00 GMT", **(extra or {}),
            }.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            if body:
                with contextlib.suppress(ConnectionError):  # one that has lost patience
                    self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False  # connections that a client keeps open would hold the test up
        stub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
