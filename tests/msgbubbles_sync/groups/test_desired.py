"""Sources of desired groups, and the messages about faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_context
from msgbubbles.handles import parse_handle
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.desired import InvalidRowsError, read_rows, validate_rows
from msgbubbles_sync.groups.model import DesiredGroup
from msgbubbles_sync.text import escape, escape_json, quote
from msgbubbles_sync.workspace import Workspace

OURS = "+14155550100"
NORTH = DesiredGroup("north", OURS, ("+14155550111", "ben@example.com"), "Hello, you!", "North")
CSV = """key,from_handle,title,addresses,message,owner
north,+14155550100,North,"ben@Example.com, +1 415 555 0111","Hello, you!",somebody
"""
YAML = """
- key: north
  from_handle: +14155550100
  title: North
  addresses: [+14155550111, ben@example.com]
  message: Hello, you!
"""
MERGED = """
base: &base {From_Handle: +14155550100, message: Hello, title: South}
other: &other {<<: *base, message: "Hello, you!"}
team: &team ["+14155550111"]
groups:
- {<<: *other, key: north, title: North, addresses: [*team, ben@example.com]}
"""
SPREAD = '"+14155550111; ben@example.com";Hello, you!'
TABBED = "+14155550111, ben@example.com\tHello, you!\n\t\t\t\t\n"
QUERY = """SELECT 'north' AS key, '+14155550100' AS from_handle, 'North' AS title, 'Hello, you!' AS message,
           ['+14155550111', 'ben@example.com'] AS addresses"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    with duckdb.connect(str(workspace.database)) as database:
        database.execute(f"CREATE SCHEMA marts; CREATE TABLE marts.desired_groups AS {QUERY}")
    return workspace


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("groups.csv", CSV),
        ("groups.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("groups.csv", CSV.replace('"ben@Example.com, +1 415 555 0111"', "+14155550111;ben@example.com")),
        ("groups.csv", CSV.replace("+14155550100", "\u202a+1 (415) 555-0100\u202c").replace("+1 415", "\uff0b1 415")),
        ("groups.csv", "Key;From Handle; TITLE ;Addresses;Message\nnorth;'+14155550100;North;" + SPREAD + "\n;;;;\n"),
        ("groups.csv", "sep=;\r\nkey;from_handle;title;addresses;message\r\nnorth;+14155550100;North;" + SPREAD + ";;"),
        ("groups.csv", "key\tfrom-handle\ttitle\taddresses\tmessage\nnorth\t+14155550100\tNorth\t" + TABBED),
        ("groups.csv", CSV.replace(",owner", ",owner,owner").replace("somebody", "somebody,,,") + ",,,,\n\n , \n"),
        ("groups.yml", YAML),
        ("groups.yml", MERGED),
        ("groups.yaml", "groups:" + YAML.replace("\n", "\n  ")),
        ("groups.yml", YAML.replace("[+14155550111, ben@example.com]", "+14155550111, ben@example.com")),
        ("groups.sql", QUERY + ";\n"),
        ("", QUERY),
        ("", "desired_groups"),
        ("", "marts.desired_groups"),
    ],
)
def test_every_source_gives_the_same_group(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    monkeypatch.chdir(workspace.database.parent)
    if name:
        Path(name).write_text(content)
    assert validate_rows(read_rows(name or content, build_context(workspace)), {OURS}) == (NORTH,)


def test_a_missing_title_is_none(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "groups.yml"
    for title in ("", "  title: null\n", "  title: ~\n", "  title:\n"):
        path.write_text(YAML.replace("  title: North\n", title))
        assert validate_rows(read_rows(str(path), build_context(workspace)), None)[0].title is None


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("none.csv", r"none.csv cannot be read \(No such file"),
        (
            "table-1.xlsx",
            "table-1.xlsx is not a table. Pass a .csv, .yml or .sql file, a dbt model, or a query",
        ),
        ("table.xlsx", "no table table.xlsx. If it is a dbt model, build it first. Pass a .csv, .yml or .sql file"),
        ("empty.yml", "no rows, which is probably a mistake"),
        ("empty.csv", "no rows, which is probably a mistake"),
        ("no_such_model", "company.duckdb has no table no_such_model. If it is a dbt model, build it first"),
        ("SELECT nothing FROM nowhere", "the query cannot be run on company.duckdb: Catalog Error"),
        ("SELECT 1/'secret text' AS x", r"the query failed on company.duckdb \(ConversionException\)"),
        ("SELECT 1 AS key", "has no column from_handle, addresses, message; it needs key, from_handle"),
        (
            "SELECT 1 AS key, 2 AS from_handle, 3 AS adresses, 4 AS message",
            "has no column addresses; it needs key, from_handle, addresses, message. Should adresses be addresses?",
        ),
        (
            "SELECT * FROM marts.desired_groups WHERE false",
            "no rows, which is probably a mistake; no group was changed",
        ),
        (
            "short.csv",
            r"short.csv:2: row 1 has more fields than columns. Quote texts that contain commas, such as addresses.",
        ),
        ("bad.yml", r"bad.yml:2 is not valid YAML"),
        ("list.yml", "list.yml is not a list of groups. Begin each group like `- key: north`."),
        ("twice.csv", r'twice.csv:2: "key" occurs 2 times. Remove all but one.'),
        ("twice.yml", r'twice.yml:3: "message" occurs 2 times. Remove all but one.'),
        ("cases.yml", r'cases.yml:1: "key" occurs 2 times'),
        ("quotes.csv", "quotes.csv:3 is not valid CSV. Quote texts that contain commas or line breaks."),
        ("wide.csv", "wide.csv is not UTF-8 text. Save it as UTF-8."),
        ("SELECT 1 AS key, 2 AS Key", 'the query\'s columns: "key" occurs 2 times'),
        ("latin.csv", "latin.csv is not UTF-8 text. Save it as UTF-8."),
    ],
)
def test_invalid_table_is_refused_with_a_fix(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, table: str, says: str
) -> None:
    monkeypatch.chdir(workspace.database.parent)
    Path("short.csv").write_text("key,from_handle,addresses,message\na,+14155550100,+14155550111,+14155550112,Hello\n")
    Path("twice.csv").write_text("\nkey,message, Key \na,Hello,b\n")
    Path("twice.yml").write_text("groups:\n- &first {key: a}\n- message: Hello\n  <<: *first\n  message: Hi\n")
    Path("cases.yml").write_text("- key: a\n  KEY: b\n")
    Path("quotes.csv").write_text('key,message\na,Hello\nb,"Hello" you\n')
    Path("wide.csv").write_bytes("key,message\na,Hello\n".encode("utf-16-le"))
    Path("bad.yml").write_text("- key: {\n- [")
    Path("empty.yml").write_text("# none\n")
    Path("empty.csv").touch()
    Path("list.yml").write_text("north: south")
    Path("latin.csv").write_bytes("key,message\na,Grüße\n".encode("latin-1"))
    with pytest.raises(UsageError, match=says) as raised:
        validate_rows(read_rows(table, build_context(workspace)), None)
    assert "secret" not in str(raised.value)


def test_query_without_a_warehouse_says_to_sync_first(tmp_path: Path) -> None:
    for table in ("SELECT 1", "a_model"):
        with pytest.raises(UsageError, match=r"none.duckdb has no tables. Run chats.py first."):
            read_rows(table, build_context(Workspace.from_path(tmp_path / "none.duckdb")))


def row(**others: Any) -> dict[str, Any]:
    return {"key": "a", "from_handle": OURS, "addresses": ["+14155550111", "ben@example.com"], "message": "Hi"} | others


@pytest.mark.parametrize(
    ("others", "fault"),
    [
        ({"key": " "}, "row 1: key is missing"),
        ({"key": "a\u200b"}, r"row 1 (a\u200b): key has invisible characters; type it again"),
        ({"addresses": "+541123456789, +54 9 11 2345-6789"}, "row 1 (a): address 2 is listed twice"),
        (
            {"addresses": "mailto:b@example.com, c@example.com"},
            "row 1 (a): address 1 is neither a phone number in E.164",
        ),
        ({"message": None}, "row 1 (a): message is missing; a group is created by its first message"),
        ({"title": "x" * 101}, "row 1 (a): title has 101 characters; 100 are allowed"),
        (
            {"from_handle": "4155550100"},
            "row 1 (a): from_handle is neither a phone number in E.164, for example +1",
        ),
        ({"from_handle": "+14155550199"}, "row 1 (a): from_handle is not one of the account's numbers"),
        ({"addresses": "+14155550111"}, "row 1 (a): a group has 2 to 31 addresses, not 1"),
        ({"title": ["a", "b"]}, "row 1 (a): title is a list; write it as text"),
        ({"addresses": None}, "row 1 (a): a group has 2 to 31 addresses, not 0"),
        ({"addresses": [f"p{n}@example.com" for n in range(32)]}, "row 1 (a): a group has 2 to 31 addresses, not 32"),
        ({"addresses": ["b@example.com", "B@Example.com"]}, "row 1 (a): address 2 is listed twice"),
        ({"addresses": ["+14155550111", "0415 555 0112"]}, "row 1 (a): address 2 is neither a phone number in E.164"),
        ({"addresses": ["+1415", "b@example.com"]}, "row 1 (a): address 1 is neither a phone number in E.164"),
        ({"addresses": ["b@example.com", "c@example.com", OURS]}, "row 1 (a): address 3 is from_handle"),
    ],
)
def test_each_fault_names_its_row(others: dict[str, Any], fault: str) -> None:
    with pytest.raises(InvalidRowsError) as raised:
        validate_rows([row(**others)], {OURS})
    assert len(raised.value.faults) == 1
    assert raised.value.faults[0].startswith(fault)


def test_largest_group_and_title_are_accepted() -> None:
    people = [f"p{n}@example.com" for n in range(31)]
    (group,) = validate_rows([row(addresses=people, title="x" * 100)], None)
    assert len(group.addresses) == 31


def test_all_faults_are_listed_without_handles() -> None:
    rows = [row(), row(key="b", message="", addresses=["anna", "+49"]), row(), row(key="c", from_handle="+1999")]
    with pytest.raises(InvalidRowsError) as raised:
        validate_rows(rows, {OURS})
    assert str(raised.value).startswith(
        "5 faults in the desired table; nothing was sent:\n  row 2 (b): message is missing"
    )
    assert raised.value.faults[-1] == "rows 1, 3 (a) have the same key; each group needs its own"
    for handle in ("anna", "+49", "+1999", "ben@example.com", OURS + " is"):
        assert handle not in str(raised.value)


@pytest.mark.parametrize(
    ("written", "handle"),
    [
        ("+1 (415) 555-0111", "+14155550111"),
        ("+49 30 901820", "+4930901820"),
        ("+442079460100", "+442079460100"),
        (" Anna@Example.COM ", "anna@example.com"),
        ("\u202a+14155550111\u202c", "+14155550111"),
        ("\uff0b\uff11 415 555\u00a00111", "+14155550111"),
        ("+5215512345678", "+5215512345678"),
        ("a\tb@example.com", None),
        ("4155550111", None),
        ("tel:+14155550111", None),
        ("+14155550111 ext. 5", None),
        ("+1415555011x", None),
        ("anna@", None),
        ("anna@example", None),
        ("a b@example.com", None),
        ("", None),
    ],
)
def test_handles_have_one_canonical_form(written: str, handle: str | None) -> None:
    assert parse_handle(written) == handle
    if handle:
        assert parse_handle(handle) == handle


def test_text_cannot_overwrite_the_terminal() -> None:
    assert escape("a\x1b[2K\r\u202eb\u200b\u00a0\n") == r"a\x1b[2K\x0d\u202eb\u200b\xa0\x0a"
    assert escape("\U000e0041\u3164\ud800") == r"\U000e0041\u3164\ud800"
    unchanged = "Ü 🎉 👨‍👩‍👧 ❤️‍🔥 北区\u3000チーム שלום"
    assert escape(unchanged) == unchanged
    assert quote('A" from "B') == r'"A\" from \"B"'
    document = json.dumps({"title": "\u202eÜ\U000e0041"}, ensure_ascii=False)
    assert "\u202e" not in escape_json(document)
    assert json.loads(escape_json(document)) == json.loads(document)
