from __future__ import annotations

import os
from pathlib import Path

import pytest

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.webhooks.secrets import SecretStore, WebhookSettings, settings_of
from msgbubbles_sync.workspace import Workspace


def configured(monkeypatch: pytest.MonkeyPatch, folder: Path, config: str) -> None:
    monkeypatch.setenv("DLT_PROJECT_DIR", str(folder))
    monkeypatch.setenv("DLT_CONFIG_FOLDER", ".")
    (folder / "config.toml").write_text(config)


def test_the_environment_comes_before_the_file_and_an_option_before_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configured(monkeypatch, tmp_path, '[webhooks]\nport = 1\nhost = "::1"\npath = "/in"\ntolerance_seconds = 5\n')
    monkeypatch.setenv("WEBHOOKS__PORT", "2")
    monkeypatch.setenv("WEBHOOKS__HOST", "localhost")
    settings = settings_of({"port": 3, "host": None})
    assert (settings.port, settings.host, settings.path, settings.tolerance_seconds) == (3, "localhost", "/in", 5.0)


def test_without_a_file_the_defaults_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    assert settings_of() == WebhookSettings()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('[webhooks]\nport = "many"', "port"),
        ("[webhooks]\nport = 70000", "port"),
        ("[webhooks]\nprot = 5", "prot"),
        ("[webhooks]\ntolerance_seconds = 0", "tolerance_seconds"),
        ('[webhooks]\nsigned_content = "{id}"', "signed_content"),
        ('[webhooks]\npath = "hooks"', "path"),
        ('[webhooks]\ndigest = "md5"', "digest"),
        ("webhooks = 5", "webhooks"),
        ("[webhooks", "config.toml"),
    ],
)
def test_what_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str, said: str) -> None:
    configured(monkeypatch, tmp_path, config)
    with pytest.raises(UsageError, match=said):
        settings_of()


def test_the_secrets_of_one_of_several_accounts_are_beside_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    workspaces = [Workspace.from_path(tmp_path / "company.duckdb", account=name) for name in (None, "north", "south")]
    paths = [SecretStore.of(workspace, sandbox=False).path.relative_to(tmp_path).as_posix() for workspace in workspaces]
    assert paths == [
        "dlt_config/secrets.toml",
        ".msgbubbles/company_north/webhooks/secrets.toml",
        ".msgbubbles/company_south/webhooks/secrets.toml",
    ]


def test_secrets_are_one_or_several_and_none_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secrets.toml"
    assert SecretStore(path).secrets == ()
    path.write_text('[webhooks]\nsecrets = "one"\n')
    store = SecretStore(path)
    assert store.secrets == ("one",)
    assert not store.changed()
    path.write_text('[webhooks]\nsecrets = ["one", "two"]\n')
    os.utime(path, ns=(1, 1))
    assert store.changed()
    assert store.secrets == ("one", "two")
    path.write_text('[webhooks]\nsecrets = ["whsec_private"\n')
    os.utime(path, ns=(2, 2))
    with pytest.raises(UsageError) as caught:
        store.changed()
    assert "private" not in str(caught.value)
    for wrong in ("[5]", '[""]', "5"):
        path.write_text(f"[webhooks]\nsecrets = {wrong}\n")
        with pytest.raises(UsageError, match="secrets"):
            SecretStore(path)
    monkeypatch.setenv("WEBHOOKS__SECRETS", "alone")
    assert SecretStore(path).secrets == ("alone",)
