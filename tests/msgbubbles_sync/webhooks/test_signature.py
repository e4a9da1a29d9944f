from __future__ import annotations

import base64
import hashlib
import hmac
import time
from email.utils import formatdate
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.hooks import KEY, SECRET, signed
from msgbubbles_sync.settings import WebhookSettings
from msgbubbles_sync.webhooks.signature import Refusal, check_request, find_signed_timestamp, is_signed

STANDARD = WebhookSettings()
BODY = b'{"type": "message.read"}'
NOW = 1_795_000_000.0


def build_scheme(
    signature: str, timestamp: str, content: str, digest: Literal["sha256", "sha512"] = "sha256"
) -> WebhookSettings:
    return WebhookSettings(
        signature_header=signature, timestamp_header=timestamp, id_header="", signed_content=content, digest=digest
    )


def digest(content: bytes, secret: bytes = b"plain secret", kind: str = "sha256") -> str:
    return hmac.digest(secret, content, kind).hex()


def test_delivery_by_the_default_scheme_is_accepted() -> None:
    assert check_request(STANDARD, [SECRET], signed(BODY, at=NOW), BODY, NOW) is None


@pytest.mark.parametrize(
    "scheme", ["stripe", "github", "millis", "micros", "nanos", "http_date", "iso", "sha512", "upper"]
)
def test_other_schemes_can_be_configured(scheme: str) -> None:
    at = str(int(NOW))
    timed = build_scheme("x-signature", "x-timestamp", "{timestamp}.{body}")
    date = formatdate(NOW, usegmt=True)
    cases = {
        "stripe": (
            build_scheme("stripe-signature", "", "{timestamp}.{body}"),
            {"stripe-signature": f"t={at},v0=00,v1={digest(f'{at}.'.encode() + BODY)}"},
        ),
        "github": (
            build_scheme("x-hub-signature-256", "", "{body}"),
            {"x-hub-signature-256": f"sha256={digest(BODY)}"},
        ),
        "millis": (timed, {"x-timestamp": f"{at}123", "x-signature": digest(f"{at}123.".encode() + BODY)}),
        "micros": (timed, {"x-timestamp": f"{at}123456", "x-signature": digest(f"{at}123456.".encode() + BODY)}),
        "nanos": (timed, {"x-timestamp": f"{at}123456789", "x-signature": digest(f"{at}123456789.".encode() + BODY)}),
        "http_date": (timed, {"x-timestamp": date, "x-signature": digest(f"{date}.".encode() + BODY)}),
        "iso": (
            timed,
            {
                "x-timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW)),
                "x-signature": digest(time.strftime("%Y-%m-%dT%H:%M:%SZ.", time.gmtime(NOW)).encode() + BODY),
            },
        ),
        "sha512": (
            build_scheme("x-signature", "", "{body}", "sha512"),
            {"x-signature": base64.b64encode(hmac.digest(b"plain secret", BODY, "sha512")).decode()},
        ),
        "upper": (build_scheme("x-signature", "", "{body}"), {"x-signature": digest(BODY).upper()}),
    }
    chosen, headers = cases[scheme]
    assert check_request(chosen, ["plain secret"], headers, BODY, NOW) is None
    assert check_request(chosen, ["another secret"], headers, BODY, NOW) is Refusal.FORGED
    assert check_request(chosen, ["plain secret"], headers, BODY + b" ", NOW) is Refusal.FORGED
    if is_signed(chosen, "timestamp"):
        assert check_request(chosen, ["plain secret"], headers, BODY, NOW + 400) is Refusal.STALE


def test_any_of_several_secrets_and_signatures_is_accepted() -> None:
    headers = signed(BODY, at=NOW)
    assert check_request(STANDARD, ["whsec_b2xk", SECRET], headers, BODY, NOW) is None
    headers["webhook-signature"] = f"v1,{'A' * 44} v1a,nonsense {headers['webhook-signature']}"
    assert check_request(STANDARD, [SECRET], headers, BODY, NOW) is None
    assert check_request(STANDARD, [], headers, BODY, NOW) is Refusal.FORGED


def test_each_signature_may_have_its_own_timestamp() -> None:
    scheme = build_scheme("stripe-signature", "", "{timestamp}.{body}")
    date = formatdate(NOW, usegmt=True)
    for at in (str(int(NOW)), f"{int(NOW)}000", date):
        right = f"t={at},v1={digest(f'{at}.'.encode() + BODY)}"
        for header in (f"t=5,v1=00\n{right}", f"{right}\nt=5,v1=00", f"t=5,v1=00, {right}"):
            headers = {"stripe-signature": header}
            assert check_request(scheme, ["plain secret"], headers, BODY, NOW) is None, header
            assert find_signed_timestamp(scheme, ["plain secret"], headers, BODY) == at
            assert check_request(scheme, ["plain secret"], headers, BODY, NOW + 400) is Refusal.STALE
            assert check_request(scheme, ["another secret"], headers, BODY, NOW) is Refusal.FORGED


@pytest.mark.parametrize("seconds", [-301, 301, 1e6, -1e9])
def test_signed_delivery_outside_the_tolerance_is_refused(seconds: float) -> None:
    assert check_request(STANDARD, [SECRET], signed(BODY, at=NOW + seconds), BODY, NOW) is Refusal.STALE
    assert check_request(STANDARD, [SECRET], signed(BODY, at=NOW + max(min(seconds, 299), -299)), BODY, NOW) is None


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_delivery_without_a_required_header_is_unsigned(missing: str) -> None:
    headers = {name: value for name, value in signed(BODY, at=NOW).items() if name != missing}
    assert check_request(STANDARD, [SECRET], headers, BODY, NOW) is Refusal.UNSIGNED


def test_id_and_timestamp_are_signed() -> None:
    for name, value in (("webhook-id", "msg_2"), ("webhook-timestamp", str(int(NOW) + 1))):
        headers = signed(BODY, at=NOW) | {name: value}
        assert check_request(STANDARD, [SECRET], headers, BODY, NOW) is Refusal.FORGED


def test_unreadable_timestamp_is_stale() -> None:
    for timestamp in ("soon", "9" * 16, "-5", "1e9", "２０"):
        content = f"msg_1.{timestamp}.".encode("latin-1", "replace") + BODY
        signature = base64.b64encode(hmac.digest(KEY, content, "sha256")).decode()
        headers = {"webhook-id": "msg_1", "webhook-timestamp": timestamp, "webhook-signature": signature}
        assert check_request(STANDARD, [SECRET], headers, BODY, NOW) is Refusal.STALE


@given(st.text(max_size=200), st.binary(max_size=50))
def test_any_other_signature_is_refused(signature: str, body: bytes) -> None:
    headers = signed(body, at=NOW)
    right = headers["webhook-signature"].removeprefix("v1,")
    if right.rstrip("=") in signature:
        return
    headers["webhook-signature"] = signature
    assert check_request(STANDARD, [SECRET], headers, body, NOW) is not None


def test_an_empty_secret_signs_nothing() -> None:
    headers = {"webhook-id": "m", "webhook-timestamp": str(int(NOW))}
    content = f"m.{int(NOW)}.".encode() + BODY
    headers["webhook-signature"] = base64.b64encode(hmac.new(b"", content, hashlib.sha256).digest()).decode()
    assert check_request(STANDARD, ["whsec_", ""], headers, BODY, NOW) is Refusal.FORGED
