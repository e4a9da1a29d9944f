"""The signing secrets of webhooks. Imports no dlt, so that a receiver starts quickly."""

from __future__ import annotations

from pathlib import Path

import tomlkit

from msgbubbles_sync.context import Context
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import read_modified_at_ns, write_privately
from msgbubbles_sync.settings import read_webhook_secrets
from msgbubbles_sync.workspace import configuration_folder

from .spool import webhooks_folder

Secrets = tuple[str, ...]


class SecretStore:
    """The signing secrets of a receiver.

    `fixed` secrets come from the environment or the settings of an account. Otherwise they are in the section
    `[webhooks]` of a file, which may change while a receiver runs.
    """

    def __init__(self, path: Path, fixed: Secrets | None = None) -> None:
        self.path = path
        self._fixed = fixed
        self._modified_at_ns: int | None = None
        self.secrets: Secrets = ()
        self.reload()

    @classmethod
    def from_context(cls, context: Context, *, sandbox: bool, path: Path | None = None) -> SecretStore:
        """Open the store of a warehouse.

        By default it is dlt's own file of secrets. The sandbox and each of several accounts have one in the workspace.
        """
        workspace = context.workspace
        is_separate = sandbox or workspace.account is not None
        default = (webhooks_folder(workspace) if is_separate else configuration_folder()) / "secrets.toml"
        return cls((path or default).expanduser().absolute(), context.settings.webhook_secrets)

    def reload(self) -> bool:
        """Read the file again if it has changed. Returns whether the secrets have changed.

        Raises `ConfigurationError` for a file that cannot be read.
        """
        before = self.secrets
        if self._fixed is not None:
            self.secrets = self._fixed
        elif (modified_at_ns := read_modified_at_ns(self.path)) != self._modified_at_ns:
            self.secrets = read_webhook_secrets(self.path)
            self._modified_at_ns = modified_at_ns
        return self.secrets != before

    def add(self, secret: str) -> None:
        """Append a secret to the file, keeping its comments and other keys. Raises `UsageError` if that fails."""
        try:
            document = self._read()
            section = document.setdefault("webhooks", tomlkit.table())
            secrets = section.get("secrets", [])
            section["secrets"] = [*([secrets] if isinstance(secrets, str) else secrets), secret]
            self._write(self.path, tomlkit.dumps(document))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{self.path} cannot be written ({type(error).__name__})") from None
        self.reload()

    def check_writable(self) -> None:
        """Check that a secret could be added, because the API shows it only once. Raises `UsageError`."""
        if self._fixed is not None:
            raise UsageError(f"WEBHOOKS__SECRETS is set and overrides {self.path}. Unset it, or pass --show.")
        try:
            trial = self.path.with_name(f".{self.path.name}.trial")
            self._write(trial, tomlkit.dumps(self._read()))
            trial.unlink()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self.path} cannot be written ({type(error).__name__}). Fix that, or pass --show."
            ) from None

    def _read(self) -> tomlkit.TOMLDocument:
        return tomlkit.parse(self.path.read_text() if self.path.exists() else "")

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_privately(path, text)
