from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from msgbubbles.errors import ConfigurationError
from msgbubbles.policy import FULL, PRESETS, Pseudonymizer
from msgbubbles_sync.destinations.publish import publish
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.policy.applied import Record, build_pseudonymizer, build_redactor, describe_error
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.workspace import Workspace

KEY = "of a test, and long enough to be a key"
PREFIX = "SOURCES__MSGBUBBLES__PRIVACY__"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    return workspace


def test_policy_and_key_are_read_from_two_files_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    monkeypatch.setenv("DLT_CONFIG_FOLDER", "here")
    (tmp_path / "here").mkdir()
    assert load_settings().policy == FULL
    assert build_pseudonymizer(load_settings()) is None
    config, secrets = tmp_path / "here" / "config.toml", tmp_path / "here" / "secrets.toml"
    config.write_text('[sources.msgbubbles.privacy]\npreset = "minimal"\ntext = "length"\n')
    with pytest.raises(ConfigurationError, match="need a key"):
        build_pseudonymizer(load_settings())
    secrets.write_text(f'[sources.msgbubbles.privacy]\nkey = "{KEY}"\npreset = "full"\n')
    with pytest.raises(
        ConfigurationError, match=r"secrets\.toml:3: .*preset is no secret: move it from secrets\.toml to .*config"
    ):
        load_settings()
    secrets.write_text(f'[sources.msgbubbles.privacy]\nkey = "{KEY}"\n')
    policy, pseudonyms = load_settings().policy, build_pseudonymizer(load_settings())
    assert (policy.text, policy.titles) == ("length", "drop")
    assert pseudonyms is not None
    assert pseudonyms.check == Pseudonymizer(KEY).check
    monkeypatch.setenv(f"{PREFIX}TEXT", "drop")
    assert load_settings().policy == PRESETS["minimal"]
    monkeypatch.setenv(f"{PREFIX}TEXT", "shred")
    with pytest.raises(ConfigurationError, match=r'TEXT: .* must be one of "drop", "keep", "length"'):
        load_settings()
    config.write_text(f'[sources.msgbubbles.privacy]\nkey = "{KEY}"\n')
    with pytest.raises(UsageError, match=r"move it from config\.toml"):
        load_settings()


def test_stored_rows_require_the_policy_they_were_loaded_under(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_redactor(workspace, load_settings()).is_idle
    assert Record.load(workspace) is None, "no policy, no record"
    monkeypatch.setenv(f"{PREFIX}KEY", KEY)
    monkeypatch.setenv(f"{PREFIX}PRESET", "analytics")
    workspace.work.touch()
    with pytest.raises(UsageError, match="privacy apply"):
        build_redactor(workspace, load_settings())
    workspace.work.unlink()
    assert build_redactor(workspace, load_settings()).policy == PRESETS["analytics"]
    monkeypatch.setenv(f"{PREFIX}TEXT_DAYS", "30")
    assert build_redactor(workspace, load_settings()).policy.text_days == 30, "days take effect at once"
    monkeypatch.setenv(f"{PREFIX}PRESET", "full")
    with pytest.raises(UsageError, match="keeps more than this warehouse was filled with"):
        build_redactor(workspace, load_settings())
    (workspace.folder / "privacy.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        build_redactor(workspace, load_settings())


def test_tracebacks_quote_no_message_under_a_policy(workspace: Workspace) -> None:
    try:
        try:
            raise ValueError("canary inside")
        except ValueError as error:
            raise RuntimeError("canary outside") from error
    except RuntimeError as error:
        crash = error
    assert describe_error(crash, workspace).count("canary") >= 2
    Record(PRESETS["minimal"]).save(workspace)
    details = describe_error(crash, workspace).replace('("canary', "")  # lines of this test
    assert "canary" not in details
    assert "ValueError" in details
    assert "RuntimeError" in details
    assert "test_record.py" in details


def test_published_file_keeps_its_read_permissions(workspace: Workspace) -> None:
    duckdb.connect(str(workspace.work)).close()
    publish(workspace.work, workspace.database)
    workspace.database.chmod(0o640)
    publish(workspace.work, workspace.database)
    assert workspace.database.stat().st_mode & 0o777 == 0o440
