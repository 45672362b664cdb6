"""An S3 server on localhost (moto) with a public and a private bucket, filled from a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import requests
from moto.server import ThreadedMotoServer

KEY, SECRET = "AKIAEXAMPLE", "the-secret-of-it"


@contextlib.contextmanager
def s3_serving() -> Iterator[str]:
    """Run a server; yields its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        # Servers of one process share what is stored.
        requests.post(f"{address}/moto-api/reset", timeout=10).raise_for_status()
        yield address
    finally:
        server.stop()


def client(endpoint: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )


def upload(endpoint: str, bucket: str, folder: Path, prefix: str, *, public: bool) -> None:
    """Put all files of a folder into a new or old bucket."""
    s3, acl = client(endpoint), "public-read" if public else "private"
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=bucket, ACL=acl)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{file.relative_to(folder)}", Body=file.read_bytes(), ACL=acl)
