"""The list of contacts: what is refused, what is loaded, and who is left out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_context
from helpers.hooks import workspace_in
from msgbubbles.policy import Pseudonymizer
from msgbubbles_sync import contact_aliases
from msgbubbles_sync.contact_aliases import load_contact_aliases, read_aliases
from msgbubbles_sync.destinations.load import load_rows
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.privacy.erase import erase
from msgbubbles_sync.workspace import Workspace

ANN, ANN_MAIL, BEN = "+14155550111", "ann@example.com", "+541123456789"
KEY = "of a test, and long enough to be a key"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: a column is missing"),
        ("handle;name\n", ":1: a column is missing"),
        ('handle,contact\n"+14155550111,Ann', " is not valid CSV"),
        (b"handle,contact\n+14155550111,\xff", "is not UTF-8 text"),
        ("handle,contact\n+14155550111,A\0", "is not UTF-8 text"),
    ],
)
def test_unreadable_list_is_refused_without_quoting_a_handle(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "contacts.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UsageError) as refused:
        read_aliases(path)
    assert message in str(refused.value)
    assert "555" not in str(refused.value).replace("+14155550100", "")


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("\n4155550111,Ann", ":4: the handle is not a valid phone number"),
        ("+14155550111", ":3: the handle has no contact"),
        (
            "+14155550111,Ann\nAnn@example.com,Ann\n+1 (415) 555-0111,Ben",
            ":5: the handle has another contact in line 3",
        ),
        ("+14155550111,Smith, Ann", ":3: row 2 has more fields than columns"),
    ],
)
def test_invalid_row_is_named_and_left_out_alone(tmp_path: Path, rows: str, fault: str) -> None:
    path = tmp_path / "contacts.csv"
    path.write_text(f"handle,contact\n{BEN},Ben\n{rows}\ncat@example.com,Cat\n")
    aliases, [named] = read_aliases(path)
    assert (aliases.pop(ANN_MAIL, "Ann"), aliases) == ("Ann", {"+541123456789": "Ben", "cat@example.com": "Cat"})
    assert fault in named
    assert "555" not in named.replace("+14155550100", "")


def test_missing_list_and_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_aliases(tmp_path / "contacts.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UsageError, match="is not a file"):
        read_aliases(tmp_path / "pipe.csv")


def test_handles_are_normalized_as_in_the_marts(tmp_path: Path) -> None:
    path = tmp_path / "contacts.csv"
    rows = [
        "id;Contact ;HANDLE",
        "1;Ann;Ann@Example.com",
        "2; Ann ;+1 415 555 0111",
        ";;",
        "3;B;+5491123456789",
    ]
    path.write_text("\ufeffsep=;\n" + "\n".join(rows))
    assert read_aliases(path) == ({ANN_MAIL: "Ann", ANN: "Ann", BEN: "B"}, [])


def load(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, text: str | None) -> dict[str, str | None]:
    """Load the list, and return all stored rows; null for no list."""
    path = workspace.folder / "contacts.csv"
    if text is None:
        monkeypatch.delenv("TRANSFORMS__CONTACT_ALIASES", raising=False)
    else:
        path.write_text(f"handle,contact\n{text}")
        monkeypatch.setenv("TRANSFORMS__CONTACT_ALIASES", str(path))
    workspace.set_done("transform")
    load_contact_aliases(build_context(workspace))
    return read_stored(workspace)


def read_stored(workspace: Workspace) -> dict[str, str | None]:
    with duckdb.connect(str(workspace.work)) as connection:
        return dict(connection.execute("SELECT handle, contact FROM msgbubbles.contact_aliases").fetchall())


@pytest.mark.slow
def test_changes_of_the_list_are_loaded_and_erased_people_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", KEY)
    workspace = workspace_in(tmp_path)
    load_contact_aliases(build_context(workspace))
    assert not workspace.work.exists(), "without a list nothing is created"
    text = f"{ANN},Ann\n{ANN_MAIL},Ann\n{BEN},Ben"
    assert load(workspace, monkeypatch, text) == {ANN: "Ann", ANN_MAIL: "Ann", BEN: "Ben"}
    assert workspace.is_pending("transform")
    assert load(workspace, monkeypatch, text) == {ANN: "Ann", ANN_MAIL: "Ann", BEN: "Ben"}
    assert not workspace.is_pending("transform")
    assert load(workspace, monkeypatch, f"{ANN},Ann\n{BEN},Ann") == {ANN: "Ann", ANN_MAIL: None, BEN: "Ann"}
    assert workspace.is_pending("transform")
    with pytest.raises(UsageError, match=r":3: the handle is not a valid phone number"):
        load(workspace, monkeypatch, f"{BEN},Ben\n4155550111,Ann")
    assert read_stored(workspace) == {ANN: "Ann", ANN_MAIL: None, BEN: "Ben"}
    assert load(workspace, monkeypatch, f"{ANN},Ann\n{BEN},Ben") == {ANN: "Ann", ANN_MAIL: None, BEN: "Ben"}

    assert erase(build_context(workspace), [ANN]).rows["contact_aliases"] == 1
    text += f"\nben@example.com,{ANN}"
    assert load(workspace, monkeypatch, text) == {ANN_MAIL: "Ann", BEN: "Ben"}
    assert load(workspace, monkeypatch, None) == {ANN_MAIL: None, BEN: None}
    workspace.set_done("transform")
    load_contact_aliases(build_context(workspace))
    assert not workspace.is_pending("transform")
    with monkeypatch.context() as patch:
        patch.setattr(contact_aliases, "load_rows", load_and_be_killed)
        with pytest.raises(KeyboardInterrupt):
            load(workspace, patch, f"{BEN},Ben")
    assert load(workspace, monkeypatch, None) == {ANN_MAIL: None, BEN: None}, "a list that is removed after a kill"


def load_and_be_killed(*rows: Any) -> None:
    load_rows(*rows)
    raise KeyboardInterrupt


@pytest.mark.slow
def test_list_is_pseudonymized_like_the_handles_of_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", KEY)
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "minimal")
    workspace, pseudonyms = workspace_in(tmp_path), Pseudonymizer.from_key(KEY)
    mail = pseudonyms.handle(ANN_MAIL)
    stored = load(workspace, monkeypatch, f"+1 415 555-0111,Ann\n{mail},Ann")
    assert stored == dict.fromkeys((pseudonyms.handle(ANN), mail), pseudonyms.handle("Ann"))
