"""Settings are read from files and variables; wrong names and values are refused with a suggestion."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from helpers.job import CHATS
from helpers.process import inherited_environment, run_process
from msgbubbles.configuration import DLT_SECTIONS, list_keys
from msgbubbles.errors import ConfigurationError
from msgbubbles.policy import PRESETS
from msgbubbles.settings import RefreshRule
from msgbubbles_sync import settings
from msgbubbles_sync.cli.connection import check_api_key
from msgbubbles_sync.cli.main import Options
from msgbubbles_sync.cli.session import choose_workspace
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.service_levels import list_schedules


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Unset after each test what it has set."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an empty configuration folder in the working directory."""
    folder = tmp_path / "dlt_config"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    return folder


@pytest.fixture
def accounts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two accounts: north has its key in the file of secrets, south in the environment."""
    (folder / "config.toml").write_text(
        "[accounts.north]\nlookback_seconds = 60.5\nrefresh_chats = [{ every_hours = 12 }]\nread_participants = true\n"
        '[accounts.north.privacy]\npreset = "minimal"\n[accounts.north.transforms]\ntime_zone = "Europe/Berlin"\n'
        '[accounts.north.transforms.spark]\n"spark.master" = "local[1]"\n[accounts.south]\n'
    )
    (folder / "secrets.toml").write_text('[accounts.north]\napi_key = "sk_north"\n')
    monkeypatch.setenv("ACCOUNTS__SOUTH__API_KEY", "sk_south")
    return folder


def refusal(config: str = "", secrets: str = "", account: str | None = None) -> str:
    """Write the files, and return what loading them, for one account or each, is refused with."""
    Path("dlt_config/config.toml").write_text(config)
    Path("dlt_config/secrets.toml").write_text(secrets)
    with pytest.raises(ConfigurationError) as refused:
        [settings.load_settings(name) for name in (account, *settings.list_account_names())]
    return str(refused.value)


@pytest.mark.usefixtures("folder")
def test_environment_overrides_secrets_file_overrides_config_file(folder: Path) -> None:
    assert settings.load_settings() == settings.Settings()
    (folder / "config.toml").write_text("[webhooks]\nport = 1\nhost = '::1'\n[sources.msgbubbles]\nmax_attempts = 2\n")
    (folder / "secrets.toml").write_text("[sources.msgbubbles]\nmax_attempts = 3\n[webhooks]\nport = 2\n")
    os.environ["WEBHOOKS__PORT"] = "3"
    loaded = settings.load_settings()
    assert (loaded.webhooks.host, loaded.webhooks.port, loaded.source.max_attempts) == ("::1", 3, 3)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('raw_schema = "Crm"', "must be a name of at most 40 lowercase letters"),
        ('marts_schema = "user"', "must be a name of at most 40 lowercase letters"),
        ('marts_schema = "msgbubbles"', "none is the end of another"),
        ('raw_schema = "crm"\nmarts_schema = "shown_crm"', "none is the end of another"),
        ('raw_schema = "north"', "none is the end of another, or of an account"),
        (f'marts_schema = "{"m" * 40}"\n[accounts.{"n" * 30}]', "more than 63 letters"),
        ('[accounts.north.sync]\nmarts_schema = "crm"', "applies to all accounts. Move it to [sync]"),
    ],
)
def test_unusable_schema_name_is_refused(text: str, says: str) -> None:
    assert says in refusal(f"[sync]\n{text}", account="n" * 30 if "nnn" in text else "north")


# Accounts


def test_accounts_come_from_both_files_and_the_environment(accounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCOUNTS__FAR_WEST__API_KEY", "sk_west")
    assert settings.list_account_names() == ["far_west", "north", "south"]
    monkeypatch.setenv("DLT_PROJECT_DIR", str(accounts))
    monkeypatch.delenv("ACCOUNTS__FAR_WEST__API_KEY")
    monkeypatch.delenv("ACCOUNTS__SOUTH__API_KEY")
    assert settings.list_account_names() == []


@pytest.mark.parametrize(
    "name", ["North", "no-rth", "1st", "a__b", "_a", "a_", "pg", "pg_one", "of_msgbubbles", "n" * 41]
)
def test_unusable_account_name_is_refused(accounts: Path, name: str) -> None:
    (accounts / "config.toml").write_text(f'[accounts."{name}"]\n')
    with pytest.raises(UsageError, match="Choose another"):
        settings.list_account_names()


@pytest.mark.usefixtures("accounts")
def test_account_settings_override_shared_settings() -> None:
    os.environ["SOURCES__MSGBUBBLES__API_KEY"] = "sk_of_nobody"
    os.environ["SOURCES__MSGBUBBLES__LOOKBACK_SECONDS"] = "5"
    os.environ["SOURCES__MSGBUBBLES__MAX_ATTEMPTS"] = "4"
    os.environ["ACCOUNTS__NORTH__PRIVACY__TITLES"] = "keep"
    loaded = settings.load_settings("north")
    assert loaded.api_key == "sk_north"
    assert (loaded.source.lookback_seconds, loaded.source.max_attempts) == (60.5, 4)
    assert loaded.source.refresh_chats == (RefreshRule(12),)
    assert loaded.source.read_participants
    assert loaded.preset == "minimal"
    assert (loaded.policy.titles, loaded.policy.text) == ("keep", PRESETS["minimal"].text)
    assert (loaded.transforms.time_zone, loaded.transforms.spark) == ("Europe/Berlin", {"spark.master": "local[1]"})
    assert settings.load_settings("south").source.lookback_seconds == 5


def test_account_without_a_key_does_not_use_another(accounts: Path) -> None:
    os.environ["SOURCES__MSGBUBBLES__API_KEY"] = "sk_of_nobody"
    (accounts / "secrets.toml").unlink()
    assert settings.load_settings("north").api_key == ""
    with pytest.raises(UsageError, match=r"account north has no API key. .*ACCOUNTS__NORTH__API_KEY"):
        choose_workspace(Options(None, "north", "duckdb", False))


@pytest.mark.usefixtures("accounts")
def test_two_accounts_with_one_key_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_workspace(Options(tmp_path / "company.duckdb", "north", "duckdb", False)).account == "north"
    monkeypatch.setenv("ACCOUNTS__SOUTH__API_KEY", "sk_north")
    with pytest.raises(UsageError, match="north and south have the same API key") as refused:
        choose_workspace(Options(tmp_path / "company.duckdb", "north", "duckdb", False))
    assert "sk_north" not in str(refused.value)


@pytest.mark.parametrize(
    "invalid", ["[accounts.south]\nstart_date = 5\n", "[accounts.south]\nstart_datee = '2026-01-01'\n"]
)
def test_invalid_settings_of_an_account_stop_no_other(accounts: Path, invalid: str, tmp_path: Path) -> None:
    config = accounts / "config.toml"
    config.write_text(config.read_text().replace("[accounts.south]\n", invalid))
    assert settings.list_account_names() == ["north", "south"]
    assert choose_workspace(Options(tmp_path / "company.duckdb", "north", "duckdb", False)).account == "north"
    with pytest.raises(ConfigurationError, match="start_date"):
        choose_workspace(Options(tmp_path / "company.duckdb", "south", "duckdb", False))


@pytest.mark.usefixtures("accounts")
def test_sandbox_is_not_a_configured_account(tmp_path: Path) -> None:
    assert choose_workspace(Options(tmp_path / "demo.duckdb", None, "duckdb", True)).account is None
    with pytest.raises(UsageError, match="Omit --account, and unset MSGBUBBLES_ACCOUNT"):
        choose_workspace(Options(tmp_path / "demo.duckdb", "north", "duckdb", True))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[accounts.north]\napi_key = "sk_1"\n', "2: [accounts.north] api_key is a secret: move it"),
        ('[accounts.north.privacy]\nkey = "k"\n', "2: [accounts.north.privacy] key is a secret: move it"),
        ('[sources.msgbubbles]\napi_key = "sk_1"\n', "2: [sources.msgbubbles] api_key is a secret: move it"),
        ('[webhooks]\nsecrets = ["sk_1"]\n', "2: [webhooks] secrets is a secret: move it"),
        ("[accounts]\nnorth = 1\n", "2: accounts.north is a section. Write it as [accounts.north]."),
        ("accounts = 1\n", "1: accounts is a section. Write it as [accounts]."),
        ("sync = 5\n", "1: sync is a section. Write it as [sync]."),
    ],
)
def test_misplaced_value_is_refused_without_quoting_it(text: str, says: str) -> None:
    message = refusal(text, account="north")
    assert message.startswith(f"dlt_config/config.toml:{says}")
    assert "sk_1" not in message


# Names

KEYS = [*list_keys(settings.SCHEMA.tree), *(("accounts", "north", *key) for key in list_keys(settings.SCHEMA.account))]
SETTINGS = [(".".join(key[:-1]), key[-1]) for key in KEYS]
HEADERS = [*dict.fromkeys(section for section, _ in SETTINGS), "transforms.spark"]


def misspelt(name: str) -> str:
    """Change a letter in the middle."""
    at = len(name) // 2
    return name[:at] + ("q" if name[at] != "q" else "z") + name[at + 1 :]


def misspelt_sections() -> Iterator[tuple[str, str]]:
    """Every section with each of its parts misspelt in turn; but for the names of accounts, which may be any."""
    for header in HEADERS:
        parts = header.split(".")
        for at, part in enumerate(parts):
            if part != "north":
                yield header, ".".join([*parts[:at], misspelt(part), *parts[at + 1 :]])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("section", "key"), SETTINGS)
def test_misspelt_key_is_refused_with_a_suggestion(section: str, key: str) -> None:
    message = refusal(f"# A comment\n\n[{section}]\n{misspelt(key)} = 1\n")
    assert message == (f"dlt_config/config.toml:4: [{section}] {misspelt(key)} is not a setting. Did you mean {key}?")
    assert refusal("", f"[{section}]\n{misspelt(key)} = 1\n").startswith("dlt_config/secrets.toml:2: ")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("section", "wrong"), list(misspelt_sections()))
def test_misspelt_section_is_refused_with_a_suggestion(section: str, wrong: str) -> None:
    message = refusal(f"\n[{wrong}]\nsome_key = 1\n")
    assert message == (
        f"dlt_config/config.toml:2: [{wrong}] is not a section of this project or of dlt. Did you mean [{section}]?"
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("section", "key"), SETTINGS)
def test_misspelt_variable_is_refused_with_a_suggestion(section: str, key: str) -> None:
    parts = [*section.split("."), key]
    right = "__".join(parts).upper()
    for at, part in enumerate(parts):
        if part == "north":
            continue
        wrong = "__".join([*parts[:at], misspelt(part), *parts[at + 1 :]]).upper()
        os.environ[wrong] = "1"
        assert refusal() == f"{wrong} is not a setting. Did you mean {right}?"
        del os.environ[wrong]
    os.environ[right.lower()] = "1"
    assert refusal() == f"{right.lower()} is not a setting. Did you mean {right}?"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sync]\nfrobnicate = 1\n", "2: [sync] frobnicate is not a setting. Correct or remove it"),
        ('[sources.msgbubbles]\npreset = "full"\n', "2: [sources.msgbubbles] preset is not a setting. Did you mean "
         "[sources.msgbubbles.privacy] preset?"),
        ('preset = "full"\n', "1: preset is not a setting. Did you mean [sources.msgbubbles.privacy] preset?"),
        ("[frobnicate]\na = 1\n", "1: [frobnicate] is not a section of this project or of dlt. Correct or remove it"),
        ("[destinaton.postgres]\na = 1\n", "1: [destinaton.postgres] is not a section of this project or of dlt. "
         "Did you mean [destination.postgres]?"),
        ("[sources.github]\na = 1\n", "1: [sources.github] is not a section of this project or of dlt."),
        ("sync.batch_page = 1\n", "1: [sync] batch_page is not a setting. Did you mean batch_pages?"),
    ],
)  # fmt: skip
def test_unknown_key_is_refused(text: str, says: str) -> None:
    assert refusal(text).startswith(f"dlt_config/config.toml:{says}")


def test_settings_of_dlt_and_other_programs_are_ignored(folder: Path) -> None:
    (folder / "config.toml").write_text(
        '[runtime]\nlog_level = "CRITICAL"\n[destination.postgres]\ncredentials = "x"\n'
        "[sources.data_writer]\nbuffer_max_items = 5\n[sources.msgbubbles.extract]\nworkers = 1\n"
    )
    os.environ |= {
        "DESTINATION__POSTGRES__CREDENTIALS": "x", "LOAD__WORKERS": "1", "SOURCES__DATA_WRITER__BUFFER_MAX_ITEMS": "5",
        "SOURCES__GITHUB__ACCESS_TOKEN": "x", "AIRFLOW__CORE__EXECUTOR": "x", "SYNCTHING__PORT": "1",
        "__CF_USER_TEXT_ENCODING": "0x1F5",
    }  # fmt: skip
    assert settings.load_settings() == settings.Settings()


def test_dlt_sections_match_dlt() -> None:
    from dlt.common.configuration.specs import known_sections

    known = {value for name, value in vars(known_sections).items() if name.isupper()}
    assert {*DLT_SECTIONS} == known - {"sources"} | {"runtime"}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("section", "key", "advice"),
    [
        ("sources.msgbubbles", "settle_seconds", "Rename it to lookback_seconds."),
        ("sync", "slice_pages", "Rename it to batch_pages."),
        ("sync", "parallel_accounts", "Remove it: accounts run one process after another."),
        ("sync", "table_format", "Remove it: a folder of Delta tables is read again into Parquet."),
    ],
)
def test_former_key_is_refused_with_its_replacement(section: str, key: str, advice: str) -> None:
    says = f"{key} is no longer supported. {advice}"
    assert refusal(f"[{section}]\n{key} = 1\n").startswith(f"dlt_config/config.toml:2: [{section}] {says}")
    inner = section.removeprefix("sources.msgbubbles")
    own = f"accounts.north.{inner}".rstrip(".")
    assert refusal(f"[{own}]\n{key} = 1\n").startswith(f"dlt_config/config.toml:2: [{own}] {says}")
    variable = f"{section.replace('.', '__')}__{key}".upper()
    os.environ[variable] = "1"
    assert refusal().startswith(f"{variable} {says.removeprefix(key + ' ')}")


# Modules that read the configuration: two of ours, and what goes through dlt for destinations and for other pipelines.
READERS = ("configuration.py", "settings.py", "source/dlt_source.py", "groups/dlt_destination.py", "destinations/")


def test_no_other_module_reads_the_configuration() -> None:
    packages = Path(settings.__file__).parents[1]
    for path in packages.glob("msgbubbles*/**/*.py"):
        name = path.relative_to(packages).as_posix().partition("/")[2]
        text = path.read_text()
        if not name.startswith(READERS):
            found = re.search(
                r"dlt\.(config|secrets)\b|tomllib|\b(SOURCES|SYNC|TRANSFORMS|WEBHOOKS|GROUPS)__\w+\"\]", text
            )
            assert not found, f"{name}: {found[0]}"


# Values


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("sources.msgbubbles", "requests_per_minute", -5, "a whole number of at least 0"),
        ("sources.msgbubbles", "start_date", "last week", 'a date like "2026-01-31"'),
        ("sources.msgbubbles.privacy", "text", "shred", 'one of "drop", "keep", "length"'),
        ("sources.msgbubbles.privacy", "text_days", 0, "a whole number of at least 1 and at most 100,000"),
        ("sources.msgbubbles.privacy", "vault", 5, "the path of a file"),
        ("sync", "batch_pages", 19, "a whole number of at least 20"),
        ("sync", "publish_minutes", 0, "a whole number of at least 1"),
        ("sync", "run_days", -1, "a whole number of days, or 0 for no limit"),
        ("sync", "run_days", 1_000_000, "a whole number of days, or 0 for no limit"),
        ("sync", "memory_limit", "little", 'a size like "512MB", or "none"'),
        ("sync", "lock_timeout_seconds", -1, "a whole number of seconds, or 0 for no limit"),
        ("transforms", "time_zone", "Berlin", 'a name like "Europe/Berlin"'),
        ("transforms", "close_after_days", -1, "a whole number of days, or 0 for never"),
        ("transforms", "session_gap_hours", 0, "a number of more than 0"),
        ("transforms.business_hours", "hours", ["mon-fri 9:00-17:30"], 'a list like ["mon-fri 09:00-17:30"'),
        ("transforms.business_hours", "hours", [], 'a list like ["mon-fri 09:00-17:30"'),
        ("transforms.business_hours", "holidays", ["Christmas"], 'a list of days like ["2026-12-25"]'),
        ("transforms.business_hours", "time_zone", "Berlin", 'a name like "Europe/Berlin"'),
        ("transforms.business_hours", "numbers", ["+1"], 'a list of tables like { handle = "+14155550100"'),
        ("transforms", "data_tests", "maybe", 'one of "hold", "off", "publish"'),
        ("transforms", "full_tests_hours", -1, "a number of at least 0"),
        ("transforms", "spark", "all of it", 'settings of Spark, like "spark.master" = "..."'),
        ("groups", "table", 5, "text in quotes"),
        ("webhooks", "port", 70000, "a whole number of at least 0 and at most 65,535"),
        ("webhooks", "port", "many", "a whole number of at least 0 and at most 65,535"),
        ("webhooks", "tolerance_seconds", 0, "a number of more than 0"),
        ("webhooks", "signed_content", "{id}", "a text with {body} in it"),
        ("webhooks", "path", "hooks", 'a path like "/"'),
        ("webhooks", "digest", "md5", 'one of "sha1", "sha256", "sha512"'),
    ],
)
def test_value_out_of_range_is_refused_with_its_line_or_variable(
    section: str, key: str, value: Any, expected: str
) -> None:
    says = f": [{section}] {key} must be {expected}"
    assert refusal(f"[{section}]\n# Not good\n{key} = {value!r}\n").startswith(f"dlt_config/config.toml:3{says}")
    if isinstance(value, str) or key not in ("table", "vault"):  # a variable is text
        variable = f"{section.replace('.', '__')}__{key}".upper()
        os.environ[variable] = str(value)
        assert refusal().startswith(f"{variable}{says}")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "number",
    [
        '{ handle = "+1", hours = ["noon"] }',
        '{ handle = "+1", time_zone = "Berlin" }',
        '{ handle = "+1", opens = "09:00" }',
        '{ hours = ["mon 09:00-10:00"] }',
        '{ handle = "+1" }, { handle = "+1" }',
    ],
)
def test_unusable_hours_of_a_number_are_refused(number: str) -> None:
    message = refusal(f"[transforms.business_hours]\nnumbers = [{number}]\n")
    assert message.startswith("dlt_config/config.toml:2: [transforms.business_hours] numbers must be a list of tables")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "target",
    [
        'metric = "next_response"',
        'metric = "resolution", minutes = 5',
        'metric = "next_response", minutes = 0',
        'metric = "next_response", minutes = 5, clock = "sun"',
        'metric = "next_response", minutes = 5, hour = 1',
        'metric = "next_response", minutes = 5, channels = ["fax"]',
    ],
)
def test_unusable_target_is_refused(target: str) -> None:
    message = refusal(f"[transforms.sla]\ntargets = [{{ {target} }}]\n")
    assert message.startswith("dlt_config/config.toml:2: [transforms.sla] targets must be a list of tables like {")


@pytest.mark.usefixtures("folder")
def test_numbers_inherit_the_business_hours_they_do_not_set() -> None:
    os.environ["TRANSFORMS__TIME_ZONE"] = "Europe/Berlin"
    os.environ["TRANSFORMS__BUSINESS_HOURS__HOURS"] = '["sat-mon 09:00-17:30", "sun 22:00-02:00"]'
    Path("dlt_config/config.toml").write_text(
        "[transforms.business_hours]\nholidays = [2026-12-25]\n"
        'numbers = [{ handle = "+1 (415) 555-0100", time_zone = "UTC" }, { handle = "+2", holidays = [] }]\n'
    )
    openings = [(1, 0, 120), (1, 540, 1050), (6, 540, 1050), (7, 540, 1050), (7, 1320, 1440)]
    christmas = (date(2026, 12, 25),)
    transforms = settings.load_settings().transforms
    assert list_schedules(transforms.business_hours, transforms.time_zone) == [
        (None, "Europe/Berlin", openings, christmas),
        ("+14155550100", "UTC", openings, christmas),
        ("+2", "Europe/Berlin", openings, ()),
    ]


@pytest.mark.usefixtures("folder")
def test_line_of_a_multiline_value_is_found() -> None:
    text = '[sync]\n# batch_pages = 1\nmemory_limit = "batch_pages"\n"batch_pages" = 1\n'
    assert "config.toml:3:" in refusal(text)
    assert "config.toml:4:" in refusal(text.replace('"batch_pages"\n"', '"none"\n"'))
    assert "config.toml:2:" in refusal("[sources.msgbubbles]\nrefresh_chats = [\n  { every_hours = 0 },\n]\n")
    assert "config.toml:1:" in refusal("sources.msgbubbles.privacy.preset = 'none'\n")
    assert "config.toml:2 is not TOML" in refusal("[sync]\nbatch_pages = \n")


@pytest.mark.usefixtures("folder")
def test_contradicting_privacy_settings_are_refused() -> None:
    message = refusal('[sources.msgbubbles.privacy]\nown_numbers = "pseudonym"\n')
    assert message.startswith("dlt_config/config.toml:2: ")
    assert "set handles too, or leave own_numbers out" in message


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "key",
    ["sk_live_...", "sk_live_…", "sk_live_xxx", "sk_test_XXXXXXXX", "...", "<your key>", "your-api-key", "sk_..."],
)
def test_placeholder_api_key_is_refused(key: str) -> None:
    Path("dlt_config/secrets.toml").write_text(f'[sources.msgbubbles]\napi_key = "{key}"\n')
    with pytest.raises(ConfigurationError) as refused:
        check_api_key(settings.load_settings())
    assert str(refused.value).startswith("dlt_config/secrets.toml:2: api_key is a placeholder.")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("key", ["sk_live_x1x2x3", "sk_test_1", "0f4e"])
def test_real_api_key_is_accepted_and_not_shown(key: str) -> None:
    os.environ["SOURCES__MSGBUBBLES__API_KEY"] = key
    loaded = settings.load_settings()
    check_api_key(loaded)
    assert key not in repr(loaded)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "full, everything is stored"),
        ('preset = "minimal"', "minimal"),
        ('preset = "analytics"\ntitles = "keep"\ntext_days = 365', 'analytics with titles = "keep", text_days = 365'),
        ("thread_days = 30", "full with thread_days = 30"),
    ],
)
def test_policy_is_described_by_its_preset_and_differences(text: str, says: str) -> None:
    Path("dlt_config/config.toml").write_text(f"[sources.msgbubbles.privacy]\n{text}\n")
    assert settings.load_settings().describe_policy() == says


# The whole command


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("config", "variables", "says"),
    [
        (
            '[source.msgbubbles.privacy]\npreset = "minimal"\n', {},
            "dlt_config/config.toml:1: [source.msgbubbles.privacy] is not a section of this project or of dlt. "
            "Did you mean [sources.msgbubbles.privacy]?",
        ),
        (
            "", {"SOURCES__MSGBUBBLES__PRIVACY__PRESENT": "minimal"},
            "SOURCES__MSGBUBBLES__PRIVACY__PRESENT is not a setting. "
            "Did you mean SOURCES__MSGBUBBLES__PRIVACY__PRESET?",
        ),
    ],
)  # fmt: skip
def test_command_is_refused_before_reading_anything(
    folder: Path, config: str, variables: dict[str, str], says: str
) -> None:
    (folder / "config.toml").write_text(config)
    done = run_process(
        [sys.executable, str(CHATS), "--database", "company.duckdb"],
        cwd=folder.parent,
        env={**inherited_environment(), **variables, "SOURCES__MSGBUBBLES__API_KEY": "sk_test_1"},
        capture_output=True,
    )
    assert (done.returncode, re.sub(r"\s+", " ", done.stderr).strip()) == (2, says)
    assert {path.name for path in folder.parent.iterdir()} == {"dlt_config"}
