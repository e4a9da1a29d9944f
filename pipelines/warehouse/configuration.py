"""The project's configuration files, read without dlt: its import takes seconds, which a receiver that was killed does
not have."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from .place import ROOT, Place, UsageError


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


def is_without_privacy(place: Place) -> bool:
    """Whether nothing is configured about personal data, and nobody was erased: all that looks into it is spared."""
    set_here = section(configuration_folder() / "config.toml", PRIVACY)
    by_environment = any(name.startswith("SOURCES__MSGBUBBLES__PRIVACY__") for name in os.environ)
    is_full = set_here.keys() <= {"preset"} and set_here.get("preset", "full") == "full"
    return is_full and not by_environment and not (place.folder / "privacy.json").exists()


def from_environment(name: str, keys: list[str]) -> dict[str, str]:
    """What the environment says of a section, in dlt's form: SOURCES__MSGBUBBLES__SETTLE_SECONDS=600."""
    names = {key: "__".join([*name.split("."), key]).upper() for key in keys}
    return {key: os.environ[variable] for key, variable in names.items() if variable in os.environ}
