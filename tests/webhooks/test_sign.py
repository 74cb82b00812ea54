"""Signing and verifying."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.errors import ConfigurationError, InvalidSignatureError
from svc_infra.webhooks.sign import WebhookSignature, new_secret, verify_webhook_signature

SECRET = new_secret()
NOW = 1_700_000_000


def test_the_reference_library_accepts_what_is_signed() -> None:
    body = b'{"topic":"ticket.created"}'
    headers = WebhookSignature(SECRET).sign("msg_1", body, timestamp=int(time.time()))
    assert standardwebhooks.Webhook(SECRET).verify(body, headers) == {"topic": "ticket.created"}


def test_what_the_reference_library_signs_is_accepted() -> None:
    moment = datetime.fromtimestamp(NOW, UTC)
    signature = standardwebhooks.Webhook(SECRET).sign("msg_1", moment, "{}")
    headers = {"Webhook-Id": "msg_1", "Webhook-Timestamp": str(NOW), "Webhook-Signature": signature}
    assert WebhookSignature(SECRET).verify(headers, b"{}", now=NOW) == "msg_1"


def test_a_rotation_signs_with_both_secrets_and_either_verifies() -> None:
    old, new = new_secret(), new_secret()
    headers = WebhookSignature([new, old]).sign("msg_1", b"{}", timestamp=NOW)
    for secret in (old, new):
        assert WebhookSignature(secret).verify(headers, b"{}", now=NOW) == "msg_1"
    with pytest.raises(InvalidSignatureError):
        WebhookSignature(new_secret()).verify(headers, b"{}", now=NOW)


@pytest.mark.parametrize("change", ["body", "webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_change_of_any_signed_part_is_refused(change: str) -> None:
    headers = WebhookSignature(SECRET).sign("msg_1", b"{}", timestamp=NOW)
    body = b"{ }" if change == "body" else b"{}"
    if change == "webhook-timestamp":
        headers[change] = str(NOW + 1)
    elif change in headers:
        headers[change] = headers[change][:-1] + "_"
    with pytest.raises(InvalidSignatureError):
        WebhookSignature(SECRET).verify(headers, body, now=NOW)


@pytest.mark.parametrize(("offset", "accepted"), [(-300, True), (300, True), (-301, False), (301, False)])
def test_a_time_outside_the_tolerance_is_refused(offset: int, accepted: bool) -> None:
    headers = WebhookSignature(SECRET).sign("msg_1", b"{}", timestamp=NOW)
    verifier = WebhookSignature(SECRET)
    if accepted:
        assert verifier.verify(headers, b"{}", now=NOW + offset) == "msg_1"
    else:
        with pytest.raises(InvalidSignatureError, match="timestamp"):
            verifier.verify(headers, b"{}", now=NOW + offset)


@given(st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text()))
def test_malformed_headers_are_refused_and_nothing_else_is_raised(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidSignatureError):
        WebhookSignature(SECRET).verify(headers, b"{}", now=NOW)


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_!!!", "whsec_c2hvcnQ=", pytest.param(SECRET.removeprefix("whsec_"), id="bare"), []]
)
def test_a_secret_of_the_wrong_form_is_refused(secret: str | list[str]) -> None:
    with pytest.raises(ConfigurationError, match="secret"):
        WebhookSignature(secret)


def test_the_plain_header_is_the_hex_mac_of_the_body() -> None:
    signature = WebhookSignature(SECRET).sign("msg_1", b"{}")["X-Signature"]
    assert verify_webhook_signature(payload=b"{}", signature=signature, secret=SECRET)
    assert verify_webhook_signature(payload=b"{}", signature=f" {signature.upper()} ", secret=SECRET)
    assert not verify_webhook_signature(payload=b"{} ", signature=signature, secret=SECRET)
    assert not verify_webhook_signature(payload=b"{}", signature=signature, secret=new_secret())
    assert not verify_webhook_signature(payload=b"{}", signature=signature, secret="")


@given(st.binary(), st.text())
def test_verifying_a_malformed_plain_header_is_false_and_never_raises(payload: bytes, signature: str) -> None:
    assert verify_webhook_signature(payload=payload, signature=signature, secret=SECRET) is False
