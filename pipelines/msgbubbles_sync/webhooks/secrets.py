"""What `[webhooks]` of the configuration says. Read without dlt, whose import takes seconds: a receiver that was killed
should be back at once."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.settings import configuration_folder, section
from msgbubbles_sync.workspace import Workspace

ENVIRONMENT = "WEBHOOKS__"
Secrets = tuple[str, ...]


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each is documented in `dlt_config/config.toml`, with the same defaults."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8484
    path: str = "/"
    signature_header: str = "webhook-signature"
    timestamp_header: str = "webhook-timestamp"
    id_header: str = "webhook-id"
    signed_content: str = "{id}.{timestamp}.{body}"
    digest: Literal["sha256", "sha512", "sha1"] = "sha256"
    tolerance_seconds: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 1_048_576
    refresh_messages: str | list[dict[str, float]] | None = None


def settings_of(overrides: Mapping[str, Any] | None = None) -> WebhookSettings:
    """From config.toml and the environment, `overrides` first. Raises `UsageError`, which names the key."""
    values = section(configuration_folder() / "config.toml", "webhooks")
    values |= {
        name: os.environ[ENVIRONMENT + name.upper()]
        for name in WebhookSettings.__struct_fields__
        if ENVIRONMENT + name.upper() in os.environ
    }
    values |= {name: value for name, value in (overrides or {}).items() if value is not None}
    if isinstance(values.get("refresh_messages"), str):
        values["refresh_messages"] = _listed(values["refresh_messages"])
    try:
        settings = msgspec.convert(values, WebhookSettings, strict=False)
    except msgspec.ValidationError as error:
        where = re.search(r"\$\.(\w+)|field `(\w+)`", str(error))
        key = (where[1] or where[2]) if where else "a key"
        raise UsageError(
            f"[webhooks] {key} has no value of its kind; dlt_config/config.toml shows how it is set"
        ) from None
    if "{body}" not in settings.signed_content:
        raise UsageError('[webhooks] signed_content must hold {body}; expected one like "{id}.{timestamp}.{body}"')
    if not settings.path.startswith("/"):
        raise UsageError('[webhooks] path begins with /; expected one like "/" or "/msgbubbles"')
    return settings


class SecretStore:
    """The signing secrets: of `WEBHOOKS__SECRETS`, or of `secrets` in the section `[webhooks]` of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_at_ns: int | None = None
        self._secrets: Secrets = ()
        self.changed()

    @classmethod
    def of(cls, workspace: Workspace, *, sandbox: bool, path: Path | None = None) -> SecretStore:
        """By default dlt's own file of secrets; those of a made-up account, and of one of several, are beside its
        database."""
        is_apart = sandbox or workspace.account is not None
        default = (workspace.folder / "webhooks" if is_apart else configuration_folder()) / "secrets.toml"
        return cls((path or default).expanduser().absolute())

    @property
    def secrets(self) -> Secrets:
        return self._secrets

    def changed(self) -> bool:
        """Read the file again, if it is another than before. Returns whether the secrets are others now.

        Raises `UsageError` for a file that cannot be read."""
        given = os.environ.get(f"{ENVIRONMENT}SECRETS")
        before = self._secrets
        if given is not None:
            self._secrets = _texts(_listed(given))
            return self._secrets != before
        try:
            found = self.path.stat().st_mtime_ns
        except OSError:
            found = 0
        if found == self._read_at_ns:
            return False
        self._secrets = _texts(section(self.path, "webhooks").get("secrets", ()))
        self._read_at_ns = found
        return self._secrets != before

    def add(self, secret: str) -> None:
        """Write a secret behind those that are there, for nobody else to read. Comments and other keys stay as they
        are. Raises `UsageError` where the file cannot be written."""
        import tomlkit

        try:
            text = self.path.read_text() if self.path.exists() else ""
            document = tomlkit.parse(text)
            section = document.setdefault("webhooks", tomlkit.table())
            known = section.get("secrets", [])
            section["secrets"] = [*([known] if isinstance(known, str) else known), secret]
            self._write(self.path, tomlkit.dumps(document))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{self.path} cannot be written ({type(error).__name__})") from None
        self.changed()

    def check_writable(self) -> None:
        """Before a secret is asked for that is shown only once. Raises `UsageError`."""
        if f"{ENVIRONMENT}SECRETS" in os.environ:
            raise UsageError(f"{ENVIRONMENT}SECRETS is set, and hides what is in {self.path}: say --show, or unset it")
        try:
            text = self.path.read_text() if self.path.exists() else ""
            tomllib.loads(text)
            # The file itself is only written where it changes.
            trial = self.path.with_name(f".{self.path.name}.trial")
            self._write(trial, text)
            trial.unlink()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self.path} cannot be written ({type(error).__name__}); mend that, or say --show"
            ) from None

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_privately(path, text)


def _listed(value: str) -> Any:
    """A list as JSON, which is how an environment variable has it; else the text itself."""
    try:
        return json.loads(value) if value.lstrip().startswith("[") else value
    except ValueError:
        return value


def _texts(value: Any) -> Secrets:
    found = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(one, str) and one.strip() for one in found):
        raise UsageError('[webhooks] secrets is a list of texts: secrets = ["whsec_..."]')
    return found
