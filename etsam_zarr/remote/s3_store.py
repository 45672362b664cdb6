"""Opens buckets in S3, with the credentials and the region of the usual places."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, cast

from etsam_zarr.errors import RemoteError, SettingsError
from etsam_zarr.remote.address import RemoteAddress

# Readable by everyone, and the credentials that somebody has for something else would be refused.
PUBLIC_BUCKETS = {"cryoet-data-portal-public": "us-west-2"}

# No limit for a whole chunk, which may be large and the line slow; only for silence.
_CLIENT = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "1h", "user_agent": "etsam-zarr"}


def open_s3(
    address: RemoteAddress, *, endpoint: str | None = None, profile: str | None = None, writing: bool = False
) -> Any:  # noqa: ANN401
    """Return obstore's store of an ``s3://`` address; only the region of a bucket at Amazon is asked for.

    Parameters
    ----------
    address
        Of a folder in a bucket.
    endpoint
        Address of an S3 service that is not Amazon's; None takes that of the usual variables.
    profile
        Name of a profile in ``~/.aws``; None takes the credentials of the usual places, or none.
    writing
        Repeat what fails, and have the server check the SHA-256 of what is written; without, each request is made
        once.

    Raises
    ------
    SettingsError
        The endpoint or profile cannot be used.
    RemoteError
        Amazon cannot be asked for the bucket's region, or does not know the bucket.
    """
    from obstore.store import S3Store

    config: dict[str, Any] = {"bucket": address.place}
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is not None:
        if not endpoint.startswith(("https://", "http://")):
            raise SettingsError(f"--s3-endpoint is {endpoint!r}; give an address that begins with https:// or http://.")
        config["endpoint"] = endpoint
    public = endpoint is None and address.place in PUBLIC_BUCKETS and profile is None
    credentials = None if public else _credentials(profile)
    if credentials is None:
        config["skip_signature"] = True
    config["region"] = _region(address.place, endpoint, credentials)
    client = {**_CLIENT, "allow_http": bool(endpoint and endpoint.startswith("http://"))}
    if writing:
        config["checksum_algorithm"] = "SHA256"
    return S3Store(
        prefix=address.path or None,
        config=cast("Any", config),
        client_options=cast("Any", client),
        retry_config={"max_retries": 5 if writing else 0},
        credential_provider=cast("Any", credentials),
    )


class _Frozen(Protocol):
    access_key: str
    secret_key: str
    token: str | None


class _Credentials:
    """What botocore finds in the usual places (variables, ~/.aws, roles), as obstore asks for it."""

    def __init__(self, session: Any, found: Any) -> None:  # noqa: ANN401 - botocore has no types
        self._found = found
        self.region: str | None = session.get_config_variable("region")

    def __call__(self) -> dict[str, Any]:
        frozen: _Frozen = self._found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            # botocore renews short-lived ones itself, when it is asked again.
            "expires_at": datetime.now(UTC) + timedelta(minutes=10),
        }


def _credentials(profile: str | None) -> _Credentials | None:
    """Return the user's credentials; None if there are none, which is how public buckets are read."""
    import botocore.exceptions
    import botocore.session

    try:
        session = botocore.session.Session(profile=profile)
        found = session.get_credentials()
    except botocore.exceptions.ProfileNotFound:
        raise SettingsError(
            f"--s3-profile is {profile!r}, and there is no such profile in ~/.aws/config or ~/.aws/credentials. Choose "
            "another, or leave it out to read a public bucket."
        ) from None
    except botocore.exceptions.BotoCoreError as error:
        raise SettingsError(
            f"The credentials for S3 cannot be had ({type(error).__name__}). Check ~/.aws and the AWS_ variables."
        ) from None
    if found is None:
        return None
    return _Credentials(session, found)


def _region(bucket: str, endpoint: str | None, credentials: _Credentials | None) -> str:
    """Return the region of a bucket: as set by the user, or as Amazon says, which it does even for private ones."""
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if named:
        return named
    if endpoint is not None:
        return (credentials and credentials.region) or "us-east-1"
    if bucket in PUBLIC_BUCKETS:
        return PUBLIC_BUCKETS[bucket]
    import requests

    try:
        answer = requests.head(f"https://s3.amazonaws.com/{bucket}", timeout=10, allow_redirects=False)
    except requests.RequestException as error:
        raise RemoteError(
            f"Amazon S3 cannot be reached to ask where the bucket {bucket} lies ({type(error).__name__}). Check your "
            "network, set AWS_REGION, or give --s3-endpoint for another service."
        ) from None
    if answer.status_code == 404:
        raise RemoteError(f"There is no bucket {bucket} at Amazon S3. Check its name, or give --s3-endpoint.")
    return answer.headers.get("x-amz-bucket-region", "us-east-1")
