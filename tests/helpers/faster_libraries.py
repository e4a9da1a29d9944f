"""Have libraries do less for each test: what they work out or read again and again, and our commands do not rely on.

`fork_server` does this before it forks, and `conftest` for pytest's own process.
"""

from __future__ import annotations

import copy
import functools
import importlib
import io
import os
import sys
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import duckdb


def configure_duckdb() -> None:
    """Have DuckDB spend less time on small tables, in which commands that do not fork work as by default.

    It loads extensions without checking their signatures: it hashes 40 to 90 MB for each connection. By day it has one
    thread: with two, one waits for the other in a loop, and a load into a lake takes a quarter longer.
    """
    connect = duckdb.connect
    faster = {"allow_unsigned_extensions": "true"}
    if os.environ.get("NIGHTLY") != "1":
        faster["threads"] = "1"

    def connect_faster(
        database: str | Path = ":memory:", read_only: bool = False, config: dict[str, Any] | None = None
    ) -> Any:
        return connect(database, read_only=read_only, config=faster | (config or {}))

    duckdb.connect = connect_faster


def memoize_type_hints() -> None:
    """Have dlt examine each type hint once: it resolves some 600 configurations in a load, a third of its CPU time."""
    import dbt_common.behavior_flags
    from dlt.common import typing
    from dlt.common.configuration.specs import base_configuration

    names = ("extract_inner_type", "is_literal_type", "is_optional_type", "is_subclass", "is_union_type")
    slow = [getattr(typing, name) for name in names]
    slow += [base_configuration.extract_inner_hint, base_configuration.is_secret_hint]
    memoized = {function: functools.cache(function) for function in slow}
    modules = [module for name, module in sys.modules.items() if name.startswith("dlt.")]
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value in memoized:
                setattr(module, name, memoized[value])
    validation: Any = importlib.import_module("dlt.common.validation")
    get_type_hints = validation.get_type_hints

    @functools.cache
    def type_hints(spec: Any) -> Any:
        return get_type_hints(spec, globalns=vars(sys.modules[spec.__module__]))

    @functools.cache
    def fields(kind: Any) -> tuple[str, ...]:
        every = kind.__dataclass_fields__.values()
        return tuple(field.name for field in every if base_configuration.is_valid_configspec_field(field))

    validation.get_type_hints = lambda spec, globalns: type_hints(spec)  # noqa: ARG005
    configuration: Any = base_configuration.BaseConfiguration
    configuration.__iter__ = lambda self: iter(fields(self.__class__))
    configuration.__len__ = lambda self: len(fields(self.__class__))
    _look_up_known_names_only()
    for name in ("schema", "utils"):
        vars(importlib.import_module(f"dlt.common.schema.{name}"))["deepcopy"] = _copy_plain
    # It reads the source of each frame to name a module that is shown in no message of ours.
    dbt_common.behavior_flags.BehaviorFlagRendered._default_source = staticmethod(lambda: "dbt")


def read_files() -> None:
    """Read what each run reads: the trusted certificates, and the project's configuration of dlt."""
    from msgbubbles.transport import _build_ssl_context
    from msgbubbles_sync.dbt.project import PROJECT

    _build_ssl_context()  # unless a fork has other CERTIFICATES
    tomlkit: Any = importlib.import_module("tomlkit")
    text = (PROJECT.parent / "dlt_config" / "config.toml").read_text(encoding="utf-8")
    parsed = {text: tomlkit.parse(text)}

    def load(file: io.TextIOBase) -> Any:
        text = file.read()
        return parsed.pop(text, None) or tomlkit.parse(text)  # dlt may change a document

    toml: Any = importlib.import_module("dlt.common.configuration.providers.toml")
    toml.tomlkit = SimpleNamespace(**vars(tomlkit) | {"load": load})


def _copy_plain(value: Any) -> Any:
    """Copy as `copy.deepcopy` does, faster for what is read from JSON."""
    if type(value) is dict:
        return {key: _copy_plain(item) for key, item in value.items()}
    if type(value) is list:
        return [_copy_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else copy.deepcopy(value)


def _look_up_known_names_only() -> None:
    """Have dlt look for a value in all sections only if a provider has its name in one of them: few have."""
    from dlt.common.configuration.providers.doc import BaseDocProvider
    from dlt.common.configuration.providers.environ import SECRET_STORAGE_PATH, EnvironProvider

    resolve: Any = importlib.import_module("dlt.common.configuration.resolve")
    look_up = resolve.resolve_single_provider_value
    has_secret_files = Path(SECRET_STORAGE_PATH).parent.exists()

    def may_have(provider: Any, key: str) -> bool:
        if isinstance(provider, EnvironProvider):
            return has_secret_files or any(name.endswith(key.upper()) for name in os.environ)
        return not isinstance(provider, BaseDocProvider) or _has_key(provider._config_doc, key)

    def look_up_known(provider: Any, key: str, *arguments: Any) -> Any:
        return look_up(provider, key, *arguments) if may_have(provider, key) else (None, [])

    resolve.resolve_single_provider_value = look_up_known


def _has_key(document: dict[str, Any], key: str) -> bool:
    return key in document or any(isinstance(value, dict) and _has_key(value, key) for value in document.values())
