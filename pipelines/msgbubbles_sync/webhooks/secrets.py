"""The signing secrets of webhooks. Imports no dlt, which takes seconds: a receiver that was killed should be back at
once.
"""

from __future__ import annotations

from pathlib import Path

import tomlkit

from msgbubbles_sync.configuration import configuration_folder
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.settings import load_settings, read_webhook_secrets
from msgbubbles_sync.workspace import Workspace

Secrets = tuple[str, ...]


class SecretStore:
    """The signing secrets: `fixed` ones, which the environment or an account has, or else those in the section
    `[webhooks]` of a file, which may change while a receiver runs.
    """

    def __init__(self, path: Path, fixed: Secrets | None = None) -> None:
        self.path = path
        self._fixed = fixed
        self._read_at_ns: int | None = None
        self._secrets: Secrets = ()
        self.changed()

    @classmethod
    def of(cls, workspace: Workspace, *, sandbox: bool, path: Path | None = None) -> SecretStore:
        """By default dlt's own file of secrets; those of a made-up account, and of one of several, are beside its
        database.
        """
        is_apart = sandbox or workspace.account is not None
        default = (workspace.folder / "webhooks" if is_apart else configuration_folder()) / "secrets.toml"
        return cls((path or default).expanduser().absolute(), load_settings(workspace.account).webhook_secrets)

    @property
    def secrets(self) -> Secrets:
        return self._secrets

    def changed(self) -> bool:
        """Read the file again, if it is another than before. Returns whether the secrets are others now.

        Raises `UsageError` for a file that cannot be read.
        """
        before = self._secrets
        if self._fixed is not None:
            self._secrets = self._fixed
            return self._secrets != before
        try:
            found = self.path.stat().st_mtime_ns
        except OSError:
            found = 0
        if found == self._read_at_ns:
            return False
        self._secrets = read_webhook_secrets(self.path)
        self._read_at_ns = found
        return self._secrets != before

    def add(self, secret: str) -> None:
        """Write a secret behind those that are there, for nobody else to read. Comments and other keys stay as they
        are. Raises `UsageError` where the file cannot be written.
        """
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
        if self._fixed is not None:
            raise UsageError(f"WEBHOOKS__SECRETS is set, and hides what is in {self.path}: say --show, or unset it")
        try:
            text = self.path.read_text() if self.path.exists() else ""
            tomlkit.parse(text)
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
