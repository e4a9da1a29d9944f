"""Have libraries do less for each test: what they work out or read again and again, and our commands do not rely on.

`fork_server` does this before it forks, and `conftest` for pytest's own process. At night they work as installed.
"""

from __future__ import annotations

import copy
import functools
import importlib
import io
import os
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import duckdb
from jinja2.utils import missing

# The events of a build that `dbt.runner` listens to.
HEARD = ("NodeStart", "NodeFinished", "SQLQuery")
BY_DAY = os.environ.get("NIGHTLY") != "1"


def configure_duckdb() -> None:
    """Have DuckDB spend less time on small tables, in which commands that do not fork work as by default.

    It loads extensions without checking their signatures: it hashes 40 to 90 MB for each connection. It has one thread:
    with two, one waits for the other in a loop, and a load into a lake takes a quarter longer.
    """
    connect = duckdb.connect
    faster = {"allow_unsigned_extensions": "true", "threads": "1"}

    def connect_faster(
        database: str | Path = ":memory:", read_only: bool = False, config: dict[str, Any] | None = None
    ) -> Any:
        return connect(database, read_only=read_only, config=faster | (config or {}))

    duckdb.connect = connect_faster


def memoize_type_hints() -> None:
    """Have dlt examine each type hint once: it resolves some 600 configurations in a load, a third of its CPU time."""
    from dlt.common import typing
    from dlt.common.configuration.specs import base_configuration

    names = ("extract_inner_type", "is_literal_type", "is_optional_type", "is_subclass", "is_union_type")
    slow = [getattr(typing, name) for name in names]
    slow += [base_configuration.extract_inner_hint, base_configuration.is_secret_hint]
    faster = {function: functools.cache(function) for function in slow}
    utils: Any = importlib.import_module("dlt.common.destination.utils")
    injected = (utils.prepare_load_table, utils.resolve_merge_strategy)
    faster |= {function: _give_capabilities(function) for function in injected}
    modules = [module for name, module in sys.modules.items() if name.startswith("dlt.")]
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value in faster:
                setattr(module, name, faster[value])
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
    # Of each table, dlt normalizes and validates the names of its own columns.
    relational: Any = importlib.import_module("dlt.common.normalizers.json.relational")
    relational.DataItemNormalizer._validate_normalizer_config = staticmethod(lambda _schema, _config: None)
    reference: Any = importlib.import_module("dlt.common.destination.reference")
    reference.Destination.capabilities = _find_capabilities_once(reference.Destination.capabilities)


def _find_capabilities_once(find: Callable[..., Any]) -> Callable[..., Any]:
    """Have dlt resolve a configuration for the capabilities of a destination once, instead of for each step."""

    def find_once(destination: Any, config: Any = None, naming: Any = None) -> Any:
        if config is not None:
            return find(destination, config, naming)
        known = vars(destination).setdefault("known_capabilities", {})
        key = (naming and (type(naming), naming.max_length), *map(repr, destination.config_params.items()))
        if key not in known:
            known[key] = find(destination, None, naming)
        return known[key].copy()

    return find_once


def _give_capabilities(inject: Any) -> Callable[..., Any]:
    """Have dlt call a function with the capabilities that it gives, without a configuration: 400 times in a load."""

    def call(tables: Any, table: Any, destination_capabilities: Any = None) -> Any:
        if destination_capabilities is None:
            return inject(tables, table)
        return inject.__wrapped__(tables, table, destination_capabilities)

    return call


def speed_up_dbt() -> None:
    """Have dbt compile each template once, and describe its events without a detour: half of a build's CPU time."""
    import dbt.context.base as context
    import dbt_common.behavior_flags
    import dbt_common.tests
    from dbt_common.clients import jinja
    from dbt_common.events import base_types

    # It reads the source of each frame to name a module that is shown in no message of ours.
    dbt_common.behavior_flags.BehaviorFlagRendered._default_source = staticmethod(lambda: "dbt")
    dbt_common.tests.enable_test_caching()
    _share_macros(jinja.NativeSandboxTemplate)
    providers: Any = importlib.import_module("dbt.context.providers")
    providers.args_to_dict = _describe_once(providers.args_to_dict)
    runtime: Any = importlib.import_module("jinja2.runtime")
    runtime.Context.resolve_or_missing = _look_up
    compile_template = jinja.MacroFuzzEnvironment.compile
    compiled: dict[tuple[Any, ...], Any] = {}

    def compile_once(environment: Any, source: Any, *arguments: Any, **options: Any) -> Any:
        key = (type(environment), source, *arguments, *options.items())
        if key not in compiled:
            compiled[key] = compile_template(environment, source, *arguments, **options)
        return compiled[key]

    jinja.MacroFuzzEnvironment.compile = compile_once
    context.get_context_modules = functools.cache(context.get_context_modules)
    parsedatetime: Any = importlib.import_module("parsedatetime")
    parsedatetime.Constants = functools.cache(parsedatetime.Constants)  # for each column of a result
    parse_dict: Any = base_types.ParseDict

    def build_message(values: dict[str, Any], message: Any) -> Any:
        """Return a message of these values, of which few need to be converted."""
        with suppress(AttributeError, TypeError, ValueError):
            return type(message)(**values)
        return parse_dict(values, message)

    base_types.ParseDict = build_message
    base_types.get_json_string_utcnow = lambda: datetime.now(UTC)
    _describe_heard_events_only()
    _prepare_graph_quickly()
    # The templates are the project's own: Jinja need not look at each attribute and call in them.
    jinja.MacroFuzzEnvironment.is_safe_attribute = jinja.MacroFuzzEnvironment.is_safe_callable = lambda *_: True
    impl: Any = importlib.import_module("dbt.adapters.base.impl")
    impl.BaseAdapter._make_match = _match_by_name(impl.BaseAdapter._make_match)
    flags: Any = importlib.import_module("dbt.flags")
    flags.get_flag_obj = _build_once_for_flags(flags.get_flag_obj)


def _describe_heard_events_only() -> None:
    """Have dbt drop the events of a build that no log and no listener of ours is interested in: nine of ten."""
    from dbt_common.events.base_types import EventLevel
    from dbt_common.events.event_manager import EventManager

    fire: Any = EventManager.fire_event

    def fire_heard(manager: Any, event: Any, level: Any = None, *args: Any, **options: Any) -> None:
        is_heard = type(event).__name__ in HEARD or (level or event.level_tag()) != EventLevel.DEBUG
        if is_heard or any(logger.level == EventLevel.DEBUG for logger in manager.loggers):
            fire(manager, event, level, *args, **options)

    manager: Any = EventManager
    manager.fire_event = fire_heard


def _prepare_graph_quickly() -> None:
    """Have dbt read a parsed project by pickle, look for a cycle only if there is one, and write no summary."""
    from dbt.contracts.graph.manifest import Manifest

    compilation: Any = importlib.import_module("dbt.compilation")
    is_acyclic = importlib.import_module("networkx").is_directed_acyclic_graph
    find_cycles = compilation.Linker.find_cycles
    compilation.Linker.find_cycles = lambda linker: None if is_acyclic(linker.graph) else find_cycles(linker)
    compilation.Linker.get_graph_summary = lambda *_: {}
    manifest: Any = Manifest
    read = manifest.from_msgpack

    @functools.lru_cache(4)
    def read_once(packed: bytes) -> bytes:
        return pickle.dumps(read(packed))

    manifest.from_msgpack = lambda packed: pickle.loads(read_once(packed))  # noqa: S301 - our own


def _match_by_name(match: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Have dbt compare only relations of the same name with one that it looks for."""

    def match_by_name(adapter: Any, relations: list[Any], database: str, schema: str, identifier: str) -> list[Any]:
        named = [each for each in relations if each.identifier.lower() == identifier.lower()]
        return match(adapter, named, database, schema, identifier)

    return match_by_name


def _build_once_for_flags(build: Callable[[], Any]) -> Callable[[], Any]:
    """Have dbt build the flags of templates once for a command."""
    last: list[Any] = [None, None]

    def build_once() -> Any:
        from dbt.flags import get_flags

        if last[0] is not get_flags():
            last[:] = get_flags(), build()
        return last[1]

    return build_once


def _share_macros(template: Any) -> None:
    """Have dbt render the arguments of a data test without a copy of all macros, a third of the test's CPU time."""
    new_context = template.new_context

    def share(self: Any, vars: Any = None, shared: bool = False, locals: Any = None) -> Any:
        if shared or locals or not isinstance(self.globals, ChainMap) or self.globals.maps[0] is not vars:
            return new_context(self, vars, shared, locals)
        return new_context(self, self.globals, shared=True)

    template.new_context = share


def _look_up(context: Any, name: str) -> Any:
    """Look a name up once in all of a template's names, instead of twice."""
    if name in context.vars:
        return context.vars[name]
    try:
        return context.parent[name]
    except KeyError:
        return missing


def _describe_once(describe: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Have dbt describe the options of a command once, instead of for each macro."""
    last: list[Any] = [None, None, {}]

    def describe_once(options: Any) -> dict[str, Any]:
        from dbt.flags import get_flags

        if last[0] is not options or last[1] is not get_flags():
            last[:] = options, get_flags(), describe(options)
        return dict(last[2])

    return describe_once


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
    environment: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]

    def may_have(provider: Any, key: str) -> bool:
        if isinstance(provider, EnvironProvider):
            return has_secret_files or key.upper().encode() + b"\n" in b"\n".join((*environment, b""))
        return not isinstance(provider, BaseDocProvider) or key in _find_keys(provider)

    def look_up_known(provider: Any, key: str, *arguments: Any) -> Any:
        return look_up(provider, key, *arguments) if may_have(provider, key) else (None, [])

    for name in ("set_value", "set_fragment"):
        setattr(BaseDocProvider, name, _forget_keys_before(getattr(BaseDocProvider, name)))
    resolve.resolve_single_provider_value = look_up_known


def _forget_keys_before(change: Callable[..., None]) -> Callable[..., None]:
    def forget_and_change(provider: Any, *arguments: Any) -> None:
        provider.__dict__.pop("all_keys", None)
        change(provider, *arguments)

    return forget_and_change


def _find_keys(provider: Any) -> set[str]:
    """Return all keys of a provider's document, at each level."""
    document: Any
    keys: set[str]
    document, keys = provider.__dict__.get("all_keys", (None, set()))
    if document is provider._config_doc:
        return keys
    queue, found = [provider._config_doc], set[str]()
    for each in queue:
        if isinstance(each, dict):
            found |= each.keys()
            queue += each.values()
    provider.all_keys = (provider._config_doc, found)
    return found
