"""The source in another pipeline, as docs/library.md shows it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from helpers.process import PIPELINES, inherited_environment, run_process
from helpers.served import serve_seeded
from msgbubbles.errors import ConfigurationError
from msgbubbles.source import msgbubbles_source
from msgbubbles_sync.sandbox import Knobs

PIPELINE = """
import json, sys
import dlt
from msgbubbles.source import msgbubbles_source
from msgbubbles.errors import MsgBubblesError

pipeline = dlt.pipeline("theirs", destination="duckdb", dataset_name="conversations")
source = msgbubbles_source()
if sys.argv[1:]:
    source = source.with_resources(*sys.argv[1:])
try:
    pipeline.run(source)
except Exception as error:
    while error and not isinstance(error, MsgBubblesError):
        error = error.__cause__
    print(json.dumps(type(error).__name__))
else:
    with pipeline.sql_client() as client:
        tables = client.execute_sql("SELECT table_schema, table_name FROM information_schema.tables")
        names = [name for schema, name in tables if schema == "conversations" and not name.startswith("_")]
        print(json.dumps({name: client.execute_sql(f"SELECT count(*) FROM {name}")[0][0] for name in names}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("only", [(), ("chats",)])
def test_five_lines_load_everything_and_a_failure_loads_nothing(tmp_path: Path, only: tuple[str, ...]) -> None:
    with serve_seeded(Knobs(server_errors=1.0), chats=120, messages=400) as server:

        def run(*, start_anew: bool = False) -> object:
            done = run_process(
                [sys.executable, "-c", PIPELINE, *only],
                start_anew=start_anew,
                cwd=tmp_path,
                env={
                    **inherited_environment(),
                    **({"PYTHONPATH": str(PIPELINES)} if start_anew else {}),
                    "DLT_DATA_DIR": str(tmp_path),
                    "DLT_LOCAL_DIR": str(tmp_path),  # a test in this process may have set another one
                    "RUNTIME__DLTHUB_TELEMETRY": "false",
                    "RUNTIME__LOG_LEVEL": "ERROR",
                    "SOURCES__MSGBUBBLES__API_KEY": server.key,
                    "SOURCES__MSGBUBBLES__BASE_URL": server.url,
                    "SOURCES__MSGBUBBLES__MAX_ATTEMPTS": "2",
                    "SOURCES__MSGBUBBLES__BUDGET_DIR": str(tmp_path),
                },
                capture_output=True,
                check=True,
            )
            return json.loads(done.stdout)

        assert run() == "RetryableError"
        server.knobs.server_errors = 0.0
        files = sum(len(row["attachments"]) for row in server.truth().messages)
        titles = sum(row["title"] is not None for row in server.truth().chats)
        counts = {"chats": 120, "chat_titles": titles, "rejected_rows": 0, "messages": 0, "attachments": 0}
        counts |= {"participant_reads": 0, "participant_lists": 0, "stream_coverage": 1}
        everything = counts | {"messages": 400, "attachments": files, "numbers": 3, "stream_coverage": 2}
        assert run(start_anew=not only) == (counts if only else everything)
        assert run() == (counts if only else everything)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty configuration folder of dlt."""
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    monkeypatch.setenv("DLT_CONFIG_FOLDER", ".dlt")
    folder = tmp_path / ".dlt"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("[sources.msgbubbles]\nlookback_second = 1", ":2: .* lookback_second is not a setting. .* lookback_seconds"),
        ("[sources.msgbubbles.privcy]\npreset = 'minimal'", ":1: .*mean .sources.msgbubbles.privacy"),
        ("[sources.msgbubbles.privacy]\nprest = 'minimal'", ":2: .* Did you mean preset"),
        ("[sources.msgbubbles]\nmax_attempts = 0", ":2: .* max_attempts must be a whole number of at least 1"),
        ("[sources.msgbubbles]\nsettle_seconds = 1", ":2: .* Rename it to lookback_seconds"),
    ],
)
def test_misspelt_setting_in_a_file_is_refused(folder: Path, text: str, refusal: str) -> None:
    (folder / "config.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"config.toml" + refusal):
        msgbubbles_source("sk_test")


@pytest.mark.usefixtures("folder")
def test_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESETS", "minimal")
    with pytest.raises(ConfigurationError, match="Did you mean SOURCES__MSGBUBBLES__PRIVACY__PRESET"):
        msgbubbles_source("sk_test")


def test_other_sections_and_valid_settings_are_accepted(folder: Path) -> None:
    text = "[sources.msgbubbles]\nlookback_seconds = 1\n[sources.msgbubbles.schema]\n[sources.github]\nx = 1\n[ours]"
    (folder / "config.toml").write_text(text)
    assert msgbubbles_source("sk_test").resources.keys() == {"numbers", "messages", "chats"}
