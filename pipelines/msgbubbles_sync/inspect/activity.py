"""Render what an operations lead asks each morning as one HTML page, without scripts and without network."""

from __future__ import annotations

import math
import re
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import duckdb
from jinja2 import Environment, Template

from msgbubbles_sync.errors import UsageError

# The exceptions of DuckDB if a mart is missing, or is of another release.
NOT_BUILT = (duckdb.CatalogException, duckdb.BinderException)
WAITING_SHOWN = 25
AGES = ("< 1 h", "1–4 h", "4–24 h", "1–3 days", "3–7 days", "1–4 weeks", "> 4 weeks")
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

# Everything that was visible when a complete run began has been read, even if the newest message is older.
AS_OF = """SELECT greatest(
    (SELECT max(started_at) FROM msgbubbles.sync_runs WHERE outcome = 'complete'),
    (SELECT max(complete_to) FROM msgbubbles.stream_coverage WHERE stream = 'messages')
) AS as_of"""
NUMBERS = "SELECT handle, label FROM msgbubbles.numbers ORDER BY handle"

# The turns of contacts in direct chats, which ask for an answer. A turn that is not answered counts against a target
# once the time of the target has passed.
ASKED = """asked AS (
    SELECT
        *,
        reply_seconds <= 300 AS is_within_5_minutes,
        reply_seconds <= 3600 AS is_within_hour,
        is_within_5_minutes OR began_at <= $as_of - INTERVAL 5 MINUTE AS is_past_5_minutes,
        is_within_hour OR began_at <= $as_of - INTERVAL 1 HOUR AS is_past_hour
    FROM marts.thread_turns
    WHERE side = 'them' AND NOT is_group AND ($number IS NULL OR from_handle = $number)
)"""
RATES = """count(*) AS asked,
    count(answered_at) AS answered,
    count(*) FILTER (is_within_5_minutes) / nullif(count(*) FILTER (is_past_5_minutes), 0)
        AS within_5_minutes,
    count(*) FILTER (is_within_hour) / nullif(count(*) FILTER (is_past_hour), 0) AS within_hour,
    quantile_cont(reply_seconds, 0.5) AS median_seconds,
    quantile_cont(reply_seconds, 0.9) AS p90_seconds"""
# The period, its complete days, and as many days before them: a day that is not over is compared with none.
FIGURES = f"""WITH {ASKED},
complete AS (
    SELECT least($last, (SELECT max(day) FROM marts.calendar WHERE is_complete)) AS last
),
periods AS (
    SELECT 1 AS place, $first AS first, $last AS last
    UNION ALL
    SELECT 2, $first, last FROM complete
    UNION ALL
    SELECT 3, $first - (last - $first + 1)::INTEGER, $first - 1 FROM complete
),
volume AS (
    SELECT
        place,
        coalesce(sum(messages_inbound), 0)::BIGINT AS messages_inbound,
        coalesce(sum(messages_outbound), 0)::BIGINT AS messages_outbound
    FROM periods LEFT JOIN marts.number_activity_daily
        ON day BETWEEN first AND last AND ($number IS NULL OR from_handle = $number)
    GROUP BY place
),
beginnings AS (
    SELECT place, count(chat_id) AS threads_new
    FROM periods LEFT JOIN marts.thread_activity
        ON began_on BETWEEN first AND last AND ($number IS NULL OR from_handle = $number)
    GROUP BY place
),
responses AS (
    SELECT place, {RATES} FROM periods INNER JOIN asked ON day BETWEEN first AND last GROUP BY place
)
SELECT * FROM volume INNER JOIN beginnings USING (place) LEFT JOIN responses USING (place) ORDER BY place"""  # noqa: S608 - constants of this module
VOLUME = """SELECT
    day,
    coalesce(sum(messages_inbound), 0)::BIGINT AS messages_inbound,
    coalesce(sum(messages_outbound), 0)::BIGINT AS messages_outbound
FROM (SELECT unnest(generate_series($first, $last, INTERVAL 1 DAY))::DATE AS day)
LEFT JOIN (FROM marts.number_activity_daily WHERE $number IS NULL OR from_handle = $number) USING (day)
GROUP BY day
ORDER BY day"""
RESPONSES = f"""WITH {ASKED}
SELECT from_handle, label, {RATES}
FROM asked LEFT JOIN msgbubbles.numbers ON handle = from_handle
WHERE day BETWEEN $first AND $last
GROUP BY from_handle, label
ORDER BY asked DESC, from_handle"""  # noqa: S608 - constants of this module
# First the targets that may still be met, then those who have waited longest within a week, then older ones, which may
# be over without a word. The page has the chats that wait on us, the dashboard may show all.
WAITING = """SELECT
    coalesce(nullif(title, ''), remote_handle, chat_id) AS who,
    from_handle,
    label,
    is_group,
    unanswered_since,
    epoch($as_of - unanswered_since) AS waited_seconds,
    CASE
        WHEN waited_seconds < 3600 THEN '< 1 h'
        WHEN waited_seconds < 4 * 3600 THEN '1–4 h'
        WHEN waited_seconds < 24 * 3600 THEN '4–24 h'
        WHEN waited_seconds < 3 * 86400 THEN '1–3 days'
        WHEN waited_seconds < 7 * 86400 THEN '3–7 days'
        WHEN waited_seconds < 28 * 86400 THEN '1–4 weeks'
        WHEN waited_seconds IS NOT NULL THEN '> 4 weeks'
    END AS age,
    target,
    main_channel,
    messages_total,
    chat_id
FROM marts.thread_activity LEFT JOIN msgbubbles.numbers ON handle = from_handle
    -- Only the last turn of a chat can be without an answer.
    LEFT JOIN (SELECT chat_id, state AS target, due_at FROM marts.sla_events WHERE answered_at IS NULL) USING (chat_id)
WHERE ($all OR waiting_on = 'us') AND ($number IS NULL OR from_handle = $number)
ORDER BY
    waiting_on IS DISTINCT FROM 'us',
    is_group,
    CASE WHEN target = 'running' THEN due_at END,
    waited_seconds >= 7 * 86400,
    CASE WHEN waited_seconds < 7 * 86400 THEN -waited_seconds ELSE waited_seconds END,
    latest_message_at DESC,
    chat_id"""
TARGETS = """SELECT
    metric,
    sum(targets_met)::BIGINT AS met,
    sum(targets_breached)::BIGINT AS breached,
    sum(targets_running)::BIGINT AS running,
    met / nullif(met + breached, 0) AS met_rate
FROM marts.sla_daily
WHERE day BETWEEN $first AND $last AND ($number IS NULL OR from_handle = $number)
GROUP BY metric
ORDER BY metric"""
BACKLOG = """SELECT day, sum(waiting_on_us)::BIGINT AS chats, sum(waiting_on_us_1_day)::BIGINT AS for_a_day
FROM marts.backlog_daily
WHERE day BETWEEN $first AND $last AND ($number IS NULL OR from_handle = $number)
GROUP BY day
ORDER BY day"""
DELIVERY = """SELECT
    coalesce(channel, 'unknown') AS channel,
    sum(messages_total)::BIGINT AS sent,
    coalesce(sum(messages_total) FILTER (status = 'failed'), 0) / sum(messages_total) AS failed,
    coalesce(sum(messages_total) FILTER (status IN ('delivered', 'read')), 0) / sum(messages_total) AS delivered,
    coalesce(sum(messages_total) FILTER (status = 'read'), 0) / sum(messages_total) AS read,
    string_agg(DISTINCT error_code, ', ' ORDER BY error_code) AS errors
FROM marts.delivery_daily
WHERE day BETWEEN $first AND $last AND ($number IS NULL OR from_handle = $number)
GROUP BY ALL
ORDER BY sent DESC, channel"""
HOURS = f"""WITH {ASKED}
SELECT
    isodow(began_at AT TIME ZONE $zone) AS weekday,
    hour(began_at AT TIME ZONE $zone) AS hour,
    count(*) AS asked
FROM asked
WHERE day BETWEEN $first AND $last
GROUP BY ALL"""  # noqa: S608 - constants of this module
QUERIES = {
    "figures": FIGURES, "volume": VOLUME, "responses": RESPONSES, "waiting": WAITING, "targets": TARGETS,
    "backlog": BACKLOG, "delivery": DELIVERY, "hours": HOURS,
}  # fmt: skip


class Number(NamedTuple):
    """A number of the account, and what the account calls it."""

    handle: str
    label: str | None


@dataclass(frozen=True)
class Activity:
    """The activity in the days from `first` to `last`, both included, in the account's time zone.

    `rows` are those of each of QUERIES, null if it reads what the warehouse lacks; `missing` says what, by its name.
    """

    as_of: datetime
    zone: str
    first: date
    last: date
    number: Number | None
    rows: Mapping[str, Sequence[Any] | None]
    missing: Mapping[str, str]


def read_activity(connection: duckdb.DuckDBPyConnection, zone: str, days: int, number: str | None) -> Activity:
    """Read the last days of a warehouse. Raises `UsageError` if it has no marts, or not this number."""
    try:
        (as_of,) = _read(connection, AS_OF)[0]
        numbers = [Number(*row) for row in _read(connection, NUMBERS)]
        chosen = next((own for own in numbers if own.handle == number), None)
        if number is not None and chosen is None:
            raise UsageError(f"--number {number}: the account has {', '.join(own.handle for own in numbers)}")
        if as_of is None:
            raise UsageError("nothing has been read yet. Run the sync first.")
        last = as_of.astimezone(ZoneInfo(zone)).date()
        values = {
            "as_of": as_of, "zone": zone, "number": number, "first": last - timedelta(days=days - 1), "last": last,
            "all": False,
        }  # fmt: skip
    except NOT_BUILT:
        raise UsageError("the warehouse has no tables. Run the sync first.") from None
    rows: dict[str, list[Any] | None] = dict.fromkeys(QUERIES)
    missing: dict[str, str] = {}
    for name, query in QUERIES.items():
        try:
            rows[name] = _read(connection, query, **values)
        except NOT_BUILT as error:
            missing[name] = describe_missing(error, query)
    if missing.keys() == QUERIES.keys():
        raise UsageError("the warehouse has no marts. Run the sync without --no-transform.")
    return Activity(as_of, zone, values["first"], last, chosen, rows, missing)


def describe_missing(error: duckdb.Error, query: str) -> str:
    """Return which table a query lacks, or which column and the marts that should have it."""
    tables = sorted(set(re.findall(r"\b(?:marts|staging)\.\w+", query))) or ["msgbubbles"]
    message = str(error).splitlines()[0]
    if table := re.search(r'able with name "?(\w+)', message):
        return next((name for name in tables if name.endswith(f".{table[1]}")), f"the table {table[1]}")
    if column := re.search(r'olumn (?:named )?"(\w+)"', message):
        return f"the column {column[1]} of {' or '.join(tables)}"
    return f"what {' and '.join(tables)} need"


def render_activity(activity: Activity, title: str, generated_at: datetime, failure: str | None) -> str:
    """Render the page, with the handles and titles that the warehouse has, and why the last run failed."""
    return _load_template().render(
        activity=activity,
        rows=activity.rows,
        asked_at={(row.weekday, row.hour): row.asked for row in activity.rows["hours"] or ()},
        title=title,
        generated_at=generated_at,
        failure=failure,
        ages=AGES,
        weekdays=WEEKDAYS,
        waiting_shown=WAITING_SHOWN,
    )


def _read(connection: duckdb.DuckDBPyConnection, query: str, **values: Any) -> list[Any]:
    """Return rows whose columns are attributes."""
    used = {name: values[name] for name in set(re.findall(r"\$(\w+)", query))}
    result = connection.execute(query, used or None)
    row = namedtuple("Row", [column[0] for column in result.description])  # type: ignore[misc]
    return [row(*values) for values in result.fetchall()]


@cache
def _load_template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": format_duration, "percent": format_percent, "day": format_day}
    return environment.from_string(files(__package__).joinpath("activity.html").read_text())


def format_duration(seconds: float | None) -> str:
    """Format seconds in the largest unit of which there are two, such as `90 min`. NaN, as in pandas, is no time."""
    if seconds is None or math.isnan(seconds):
        return "–"
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def format_percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.0f} %"


def format_day(day: date) -> str:
    return f"{day:%a} {day.day} {day:%b}"
