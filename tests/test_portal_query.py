"""Questions to a portal that is slow, busy, broken or away."""

from __future__ import annotations

from pathlib import Path

import pytest
from portal_stub import Stub, run_record

from etsam_zarr.errors import RemoteError, SettingsError
from etsam_zarr.portal import query
from etsam_zarr.portal.query import URL_VARIABLE, ask

QUERY = "query($where: TomogramWhereClause) { tomograms(where: $where) { id } }"
RUN = run_record(8354, "ycw2013-01-03-15", 10160)


def test_asks_once_for_equal_questions(portal: Stub) -> None:
    portal.add_tomogram(1, RUN)
    first = ask(QUERY, {"where": {"runId": {"_eq": 8354}}})
    first["tomograms"].clear()  # what one caller does to its answer is not the next one's business
    assert ask(QUERY, {"where": {"runId": {"_eq": 8354}}}) == {"tomograms": [{"id": 1}]}
    assert portal.asked == [{"where": {"runId": {"_eq": 8354}}}]
    assert ask(QUERY, {"where": {"runId": {"_eq": 1}}}) == {"tomograms": []}
    assert len(portal.asked) == 2


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(portal: Stub, status: int) -> None:
    portal.add_tomogram(1, RUN)
    portal.statuses = [status] * 4
    assert ask(QUERY, {"where": None}) == {"tomograms": [{"id": 1}]}
    assert len(portal.headers) == 5


@pytest.mark.timeout(60)
def test_does_not_wait_for_hours(portal: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_LONGEST_WAIT", 0.05)
    portal.statuses, portal.retry_after = [429, 503], "3600"
    assert ask(QUERY, {"where": None}) == {"tomograms": []}
    assert len(portal.headers) == 3


def test_gives_up_after_a_fixed_number(portal: Stub) -> None:
    portal.statuses = [503] * 9
    with pytest.raises(RemoteError, match="HTTP 503, 5 times") as caught:
        ask(QUERY, {"where": None})
    assert "\n" not in str(caught.value)
    assert len(portal.headers) == 5
    # A failure is not kept.
    portal.statuses = []
    assert ask(QUERY, {"where": None}) == {"tomograms": []}


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404])
def test_what_does_not_pass_is_not_tried_again(portal: Stub, status: int) -> None:
    portal.statuses = [status]
    with pytest.raises(RemoteError, match=f"HTTP {status}"):
        ask(QUERY, {"where": None})
    assert len(portal.headers) == 1


def test_a_time_out_says_so(portal: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    portal.delay = 0.4
    monkeypatch.setattr(query, "_TIMEOUTS", (5.0, 0.1))
    monkeypatch.setattr(query, "_RETRIES", 1)
    with pytest.raises(RemoteError, match=r"did not answer within 0\.1 s, 2 times"):
        ask(QUERY, {"where": None})


def test_a_portal_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "http://user:secret@127.0.0.1:9/graphql?token=secret")
    monkeypatch.setattr(query, "_BACKOFF", 0.0)
    with pytest.raises(RemoteError, match="cannot be reached") as caught:
        ask(QUERY, {"where": None})
    assert "http://127.0.0.1:9/graphql" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert URL_VARIABLE in str(caught.value)


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><title>Sign in</title>", b"[]", b'"data"', b'{"data": null}', b""])
def test_an_answer_that_is_none(portal: Stub, body: bytes) -> None:
    portal.body = body
    with pytest.raises(RemoteError, match="something else than data"):
        ask(QUERY, {"where": None})


def test_a_question_that_the_portal_does_not_understand(portal: Stub) -> None:
    with pytest.raises(RemoteError, match="Cannot query field 'colour'"):
        ask("{ tomograms { colour } }", {})


@pytest.mark.parametrize("url", ["portal.example.org/graphql", "ftp://portal.example.org", "http://"])
def test_an_endpoint_that_is_no_web_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(URL_VARIABLE, url)
    with pytest.raises(SettingsError, match=URL_VARIABLE):
        ask(QUERY, {"where": None})


def test_no_credentials_are_taken_from_the_home_folder(
    portal: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    ask(QUERY, {"where": None})
    assert "Authorization" not in portal.headers[0]
