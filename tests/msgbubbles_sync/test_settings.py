"""Which accounts there are, and how each is configured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgbubbles_sync import settings
from msgbubbles_sync.cli.options import workspace_of
from msgbubbles_sync.errors import UsageError


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What is set in a test is gone after it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configuration: north has its key in the file of secrets, south in the environment."""
    folder = tmp_path / "dlt_config"
    folder.mkdir()
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    (folder / "config.toml").write_text(
        "[accounts.north]\nlookback_seconds = 60.5\nrefresh_chats = [{ every_hours = 12 }]\nread_participants = true\n"
        '[accounts.north.privacy]\npreset = "minimal"\n[accounts.north.transforms]\ntime_zone = "Europe/Berlin"\n'
        '[accounts.north.transforms.spark]\n"spark.master" = "local[1]"\n[accounts.south]\n'
    )
    (folder / "secrets.toml").write_text('[accounts.north]\napi_key = "sk_north"\n')
    monkeypatch.setenv("ACCOUNTS__SOUTH__API_KEY", "sk_south")
    return folder


def test_they_are_those_of_both_files_and_of_the_environment(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCOUNTS__FAR_WEST__API_KEY", "sk_west")
    assert settings.account_names() == ["far_west", "north", "south"]
    monkeypatch.setenv("DLT_PROJECT_DIR", str(written))
    monkeypatch.delenv("ACCOUNTS__FAR_WEST__API_KEY")
    monkeypatch.delenv("ACCOUNTS__SOUTH__API_KEY")
    assert settings.account_names() == []


@pytest.mark.parametrize(
    "name", ["North", "no-rth", "1st", "a__b", "_a", "a_", "pg", "pg_one", "of_msgbubbles", "n" * 41]
)
def test_a_name_that_no_schema_or_file_could_have_is_refused(written: Path, name: str) -> None:
    (written / "config.toml").write_text(f'[accounts."{name}"]\n')
    with pytest.raises(UsageError, match="choose another"):
        settings.account_names()


@pytest.mark.usefixtures("written")
def test_an_account_has_what_is_set_for_it_before_what_is_set_for_all() -> None:
    os.environ["SOURCES__MSGBUBBLES__API_KEY"] = "sk_of_nobody"
    os.environ["ACCOUNTS__NORTH__PRIVACY__TITLES"] = "keep"
    settings.use_account("north")
    assert {name: value for name, value in os.environ.items() if name.startswith(("SOURCES__", "TRANSFORMS__"))} == {
        "SOURCES__MSGBUBBLES__API_KEY": "sk_north",
        "SOURCES__MSGBUBBLES__LOOKBACK_SECONDS": "60.5",
        "SOURCES__MSGBUBBLES__REFRESH_CHATS": '[{"every_hours": 12}]',
        "SOURCES__MSGBUBBLES__READ_PARTICIPANTS": "true",
        "SOURCES__MSGBUBBLES__PRIVACY__PRESET": "minimal",
        "SOURCES__MSGBUBBLES__PRIVACY__TITLES": "keep",
        "TRANSFORMS__TIME_ZONE": "Europe/Berlin",
        "TRANSFORMS__SPARK": '{"spark.master": "local[1]"}',
    }
    assert os.environ["MSGBUBBLES_ACCOUNT"] == "north"


def test_an_account_without_a_key_of_its_own_does_not_take_that_of_another(written: Path) -> None:
    os.environ["SOURCES__MSGBUBBLES__API_KEY"] = "sk_of_nobody"
    (written / "secrets.toml").unlink()
    with pytest.raises(UsageError, match=r"account north has no API key: .*ACCOUNTS__NORTH__API_KEY"):
        settings.use_account("north")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[accounts.north]\napi_key = "sk_1"\n', r"\[accounts\.north\] api_key is a secret"),
        ('[accounts.north.privacy]\nkey = "k"\n', r"\[accounts\.north\.privacy\] key is a secret"),
        ("[accounts]\nnorth = 1\n", r"accounts\.north is a section"),
        ("accounts = 1\n", "accounts is a section"),
    ],
)
def test_what_is_in_the_wrong_place_is_refused_without_being_quoted(written: Path, text: str, says: str) -> None:
    (written / "config.toml").write_text(text)
    with pytest.raises(UsageError, match=says) as refusal:
        settings.use_account("north")
    assert "sk_1" not in str(refusal.value)


@pytest.mark.usefixtures("written")
def test_a_made_up_account_is_none_of_those_that_are_configured(tmp_path: Path) -> None:
    assert workspace_of(tmp_path / "demo.duckdb", None, sandbox=True).account is None
    with pytest.raises(UsageError, match="leave out --account, and unset MSGBUBBLES_ACCOUNT"):
        workspace_of(tmp_path / "demo.duckdb", "north", sandbox=True)


def test_parallel_accounts_are_refused_wherever_they_are_configured(written: Path) -> None:
    os.environ["SYNC__PARALLEL_ACCOUNTS"] = "2"
    with pytest.raises(UsageError, match=r"SYNC__PARALLEL_ACCOUNTS.*one cron line per\naccount with --account"):
        settings.account_names()
    del os.environ["SYNC__PARALLEL_ACCOUNTS"]
    (written / "config.toml").write_text("[sync]\nparallel_accounts = 1\n")
    with pytest.raises(UsageError, match=r"\[sync\] parallel_accounts is no longer supported: accounts run one"):
        workspace_of(None, None, sandbox=False)
