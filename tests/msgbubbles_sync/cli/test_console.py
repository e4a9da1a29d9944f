"""What commands print names commands as the user called them."""

from __future__ import annotations

import json
import sys

import pytest

from msgbubbles_sync.check_result import CheckResult
from msgbubbles_sync.cli.console import Reporter
from msgbubbles_sync.cli.inspect_report import print_checks

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
