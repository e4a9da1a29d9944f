"""The project's configuration files, read without dlt: its import takes seconds, which a receiver that was killed does
not have."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError
from .workspace import ROOT, Workspace

ACCOUNT_VARIABLE = "MSGBUBBLES_ACCOUNT"
# Sections that [accounts.NAME] may have; everything else in it configures the source.
ACCOUNT_SECTIONS = ("groups", "sync", "transforms", "webhooks")
ACCOUNT_NAME = re.compile(r"[a-z](?:_?[a-z0-9])*")
# PostgreSQL truncates the name of a schema to 63 bytes.
MAX_ACCOUNT_LETTERS = 40
PARALLEL_ACCOUNTS = """[sync] parallel_accounts is no longer supported: accounts run one process after another. Remove
it from dlt_config/config.toml, or unset SYNC__PARALLEL_ACCOUNTS. To run several accounts at once, use one cron line per
account with --account NAME"""


def configuration_folder() -> Path:
    """Where dlt looks too."""
    return Path(os.environ.get("DLT_PROJECT_DIR", str(ROOT)), os.environ.get("DLT_CONFIG_FOLDER", "dlt_config"))


def content_of(path: Path) -> dict[str, Any]:
    """What a TOML file says; nothing where there is none. Raises `UsageError`, which quotes none of it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"line {line[1]}" if line else "its end"
        raise UsageError(
            f"{path}: {where} is not TOML; mend it (text is in quotes, a section's name in brackets)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}); mend it, or let the user of this job read it"
        ) from None


def section(path: Path, name: str) -> dict[str, Any]:
    """A section of a TOML file, by its dotted name; empty where there is none. Raises `UsageError`."""
    found: Any = content_of(path)
    for part in name.split("."):
        found = found.get(part, {})
        if not isinstance(found, dict):
            raise UsageError(f"{path}: {part} is a section, [{name}]; mend it")
    return dict(found)


def setting_of_sync(key: str, default: Any) -> Any:
    """A setting of `[sync]`, of the environment before that of the file."""
    settings = section(configuration_folder() / "config.toml", "sync") | from_environment("sync", [key])
    return settings.get(key, default)


PRIVACY = "sources.msgbubbles.privacy"


def is_without_privacy(workspace: Workspace) -> bool:
    """Whether nothing is configured about personal data, and nobody was erased: all that looks into it is spared."""
    set_here = section(configuration_folder() / "config.toml", PRIVACY)
    by_environment = any(name.startswith("SOURCES__MSGBUBBLES__PRIVACY__") for name in os.environ)
    is_full = set_here.keys() <= {"preset"} and set_here.get("preset", "full") == "full"
    return is_full and not by_environment and not (workspace.folder / "privacy.json").exists()


def from_environment(name: str, keys: list[str]) -> dict[str, str]:
    """What the environment says of a section, in dlt's form: SOURCES__MSGBUBBLES__LOOKBACK_SECONDS=600."""
    names = {key: "__".join([*name.split("."), key]).upper() for key in keys}
    return {key: os.environ[variable] for key, variable in names.items() if variable in os.environ}


def account_names() -> list[str]:
    """Return the names of the configured accounts, in order. Raises `UsageError`."""
    if setting_of_sync("parallel_accounts", None) is not None:
        raise UsageError(PARALLEL_ACCOUNTS)
    names = {name for file in ("config.toml", "secrets.toml") for name in _accounts_in(file)}
    names |= {
        name.split("__")[1].lower() for name in os.environ if re.fullmatch(r"ACCOUNTS__[A-Z0-9_]+__API_KEY", name)
    }
    for name in names:
        # PostgreSQL keeps names that begin with pg_ for itself; others would be taken for schemas of dlt's.
        is_taken = f"{name}_".startswith("pg_") or name.endswith("msgbubbles")
        if not ACCOUNT_NAME.fullmatch(name) or len(name) > MAX_ACCOUNT_LETTERS or is_taken:
            raise UsageError(
                f"[accounts.{name}]: an account's name is of small letters and digits, with _ between them; it begins "
                "with a letter but not with pg_, does not end in msgbubbles, and has "
                f"{MAX_ACCOUNT_LETTERS} of them at most; choose another"
            )
    return sorted(names)


def use_account(name: str) -> None:
    """Configure this process for an account: its settings in `[accounts.NAME]` override those for all accounts. Raises
    `UsageError`."""
    found = _flat(_accounts_in("config.toml").get(name, {}))
    for key in ("api_key", "privacy__key"):
        if key in found:
            where, _, last = f"accounts.{name}.{key.replace('__', '.')}".rpartition(".")
            raise UsageError(f"[{where}] {last} is a secret: move it from config.toml to dlt_config/secrets.toml")
    found |= _flat(_accounts_in("secrets.toml").get(name, {}))
    prefix = f"ACCOUNTS__{name.upper()}__"
    found |= {key[len(prefix) :].lower(): value for key, value in os.environ.items() if key.startswith(prefix)}
    if not found.get("api_key"):
        raise UsageError(
            f"account {name} has no API key: set api_key of [accounts.{name}] in dlt_config/secrets.toml, or "
            f"{prefix}API_KEY"
        )
    os.environ[ACCOUNT_VARIABLE] = name
    for key, value in found.items():
        own = key.partition("__")[0] in ACCOUNT_SECTIONS
        os.environ[(key if own else f"sources__msgbubbles__{key}").upper()] = value


def _accounts_in(file: str) -> dict[str, Any]:
    found = section(configuration_folder() / file, "accounts")
    for name, values in found.items():
        if not isinstance(values, dict):
            raise UsageError(f"{file}: accounts.{name} is a section, [accounts.{name}]; mend it")
    return found


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Flatten sections into the keys of dlt's variables: `privacy__preset`."""
    found: dict[str, str] = {}
    for key, value in values.items():
        # Spark's own settings have dotted names and stay together.
        if isinstance(value, dict) and not any("." in name for name in value):
            found |= {f"{key}__{inner}": one for inner, one in _flat(value).items()}
        else:
            found[key] = value if isinstance(value, str) else json.dumps(value)
    return found
