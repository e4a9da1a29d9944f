"""What commands print names commands as the user called them."""

from __future__ import annotations

import io
import json
import sys

import pytest

from msgbubbles.errors import ApiError, AuthenticationError, ForbiddenError
from msgbubbles_sync.check_result import CheckResult
from msgbubbles_sync.cli.console import Reporter, confirm
from msgbubbles_sync.cli.inspect_report import print_checks
from msgbubbles_sync.cli.sync_report import describe_refusal

RESULT = CheckResult("webhook events", "failed", "none", "see webhooks.py list")


@pytest.mark.parametrize(
    ("called", "expected"),
    [("/bin/msgbubbles", "see msgbubbles webhooks list"), ("pipelines/chats.py", "see webhooks.py list")],
)
def test_commands_are_named_as_they_were_called(
    called: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    print_checks(Reporter(), [RESULT])
    assert expected in capsys.readouterr().out
    print_checks(Reporter(as_json=True), [RESULT])
    assert json.loads(capsys.readouterr().out)[0]["fix"] == expected
    Reporter().fail(RESULT.fix)
    assert capsys.readouterr().err == f"{expected}\n"
    Reporter().print_text({}, RESULT.fix)
    assert capsys.readouterr().out == f"{expected}\n"


def test_names_between_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().print({}, lambda console: console.print("GET /chats/:id: malformed answer"))
    Reporter().fail("GET /chats/:id: malformed answer")
    assert [*capsys.readouterr()] == ["GET /chats/:id: malformed answer\n"] * 2


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        (
            AuthenticationError,
            "Check the API key in dlt_config/secrets.toml, or the variable that sets it, and run again. ",
        ),
        (ForbiddenError, "Nothing was read. Run again, or find the cause with chats.py check. "),
    ],
)
def test_error_of_a_first_run_names_the_fix_first(kind: type[ApiError], start: str) -> None:
    error = kind("the API answered 401", request_id="req_1")
    message = describe_refusal(error)
    assert message.startswith(start)
    assert message.endswith(". The API answered 401 (request req_1).")
    assert describe_refusal(kind("is /v1 missing?")).endswith(". Is /v1 missing?")


@pytest.mark.parametrize(("typed", "is_confirmed"), [("y\n", True), ("n\n", False), ("", False)])
def test_end_of_input_confirms_nothing(monkeypatch: pytest.MonkeyPatch, typed: str, is_confirmed: bool) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert confirm("Erase 1 person for good?") is is_confirmed
