from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.context import build_context
from msgbubbles.errors import ConfigurationError
from msgbubbles_sync.webhooks.secrets import SecretStore
from msgbubbles_sync.workspace import Workspace


def test_each_of_several_accounts_has_its_own_secrets_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    workspaces = [Workspace.from_path(tmp_path / "company.duckdb", account=name) for name in (None, "north", "south")]
    paths = [
        SecretStore.from_context(build_context(workspace), sandbox=False).path.relative_to(tmp_path).as_posix()
        for workspace in workspaces
    ]
    assert paths == [
        "dlt_config/secrets.toml",
        ".msgbubbles/company_north/webhooks/secrets.toml",
        ".msgbubbles/company_south/webhooks/secrets.toml",
    ]


def test_one_or_several_secrets_are_read_and_never_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secrets.toml"
    assert SecretStore(path).secrets == ()
    path.write_text('[webhooks]\nsecrets = "one"\n')
    store = SecretStore(path)
    assert store.secrets == ("one",)
    assert not store.reload()
    path.write_text('[webhooks]\nsecrets = ["one", "two"]\n')
    os.utime(path, ns=(1, 1))
    assert store.reload()
    assert store.secrets == ("one", "two")
    path.write_text('[webhooks]\nsecrets = ["whsec_private"\n')
    os.utime(path, ns=(2, 2))
    with pytest.raises(ConfigurationError) as caught:
        store.reload()
    assert "private" not in str(caught.value)
    for wrong in ("[5]", '[""]', "5"):
        path.write_text(f"[webhooks]\nsecrets = {wrong}\n")
        with pytest.raises(ConfigurationError, match="secrets"):
            SecretStore(path)
    monkeypatch.setenv("WEBHOOKS__SECRETS", "alone")
    assert SecretStore.from_context(
        build_context(Workspace.from_path(tmp_path / "company.duckdb")), sandbox=False, path=path
    ).secrets == ("alone",)
