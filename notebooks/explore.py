"""Show who waits for an answer, how fast we answer, what was written, and how fresh the copy is. Read-only.

marimo run --token notebooks/explore.py                   # view the dashboard
marimo edit notebooks/explore.py -- --database my.duckdb  # change its queries
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="MsgBubbles", sql_output="pandas")

with app.setup(hide_code=True):
    import json
    import os
    import sys
    import warnings
    from contextlib import suppress
    from datetime import UTC, datetime, timedelta
    from pathlib import Path
    from typing import Any, Literal

    import altair as alt
    import duckdb
    import marimo as mo
    import pandas as pd

    # DuckDB 1.5 causes it for every result with a timestamp.
    warnings.filterwarnings("ignore", message="The inplace keyword in DataFrame.drop", category=DeprecationWarning)

    PROJECT = Path(__file__).resolve().parents[1]
    sys.path.append(str(PROJECT / "pipelines"))
    # Its queries, so that dashboard and report show the same figures.
    from msgbubbles_sync.inspect import activity
    from msgbubbles_sync.inspect.activity import format_duration

    DEFAULTS = (PROJECT / "warehouse.duckdb", PROJECT / "demo.duckdb")
    RELATIONS = (
        "marts.contact",
        "marts.delivery_daily",
        "marts.group_membership",
        "marts.number_activity_daily",
        "marts.sla_daily",
        "marts.sla_events",
        "marts.thread_activity",
        "marts.thread_activity_daily",
        "marts.thread_turns",
        "msgbubbles.stream_coverage",
        "msgbubbles.sync_runs",
        "staging.int_thread_messages",
    )

    # Readable on light and dark backgrounds.
    SIDES = {"them": "#3f8fd6", "us": "#e8833a", "unknown": "#8c8c8c"}
    EVIDENCE = {
        "operation": "#2a9d8f",
        "participant_list": "#9b6fd0",
        "own_number": "#e8833a",
        "message": "#3f8fd6",
    }
    TARGETS = {"met": "#2a9d8f", "breached": "#d9534f", "running": "#e8b23a"}
    STATES = {"read": "#2a9d8f", "not read": "#d9534f"}
    REPLY_TIMES = ["< 1 min", "1–5 min", "5–15 min", "15–60 min", "1–4 h", "4–24 h", "1–7 days", "> 7 days"]
    WAITS = ["< 1 h", "1–4 h", "4–24 h", "1–3 days", "3–7 days", "1–4 weeks", "> 4 weeks"]
    BINS: dict[str, Any] = {"day": "binnedutcyearmonthdate", "week": "binnedutcyearweek", "month": "binnedutcyearmonth"}
    WEEKDAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


@app.cell
def _():
    database = find_database()
    problem = find_problem(database)
    mo.stop(problem is not None, mo.callout(mo.md(str(problem)), kind="danger"))
    _is_demo = database == DEFAULTS[1] and DEFAULTS[0].exists()
    skipped = f"This is the demo, because {find_problem(DEFAULTS[0])}" if _is_demo else None
    return database, skipped


@app.cell(hide_code=True)
def _():
    refresh = mo.ui.refresh(options=["1m", "5m", "30m"], default_interval="5m", label="Read the file again")
    return (refresh,)


@app.cell
def _(database, refresh):
    refresh.value  # noqa: B018 - the button, or the interval, runs this cell again
    warehouse = connect(database)

    def query(sql: str, **parameters: object) -> pd.DataFrame:
        return warehouse.sql(sql, params=parameters).to_arrow_table().to_pandas()

    return query, warehouse


@app.cell
def _(database):
    # From a connection of its own: what is chosen stays when the file is read again.
    with connect(database) as _connection:
        _numbers = _connection.execute(
            """
            SELECT from_handle, max(n.label) AS label
            FROM marts.thread_activity AS t LEFT JOIN msgbubbles.numbers AS n ON n.handle = t.from_handle
            WHERE from_handle IS NOT NULL
            GROUP BY from_handle
            ORDER BY count(*) DESC, from_handle
            """
        ).fetchall()
        [(_oldest, _newest)] = _connection.execute(
            """
            SELECT min(day), greatest(max(day), (SELECT max(started_at)::DATE FROM msgbubbles.sync_runs))
            FROM marts.thread_activity_daily
            """
        ).fetchall()
    _newest = _newest or datetime.now(UTC).date()
    _oldest = _oldest or _newest
    _options = {f"{handle} · {label}" if label else handle: handle for handle, label in _numbers}
    number_choice = mo.ui.dropdown({"All": None, **_options}, value="All", label="Our number")
    days_choice = mo.ui.date_range(
        start=_oldest, stop=_newest, value=(max(_oldest, _newest - timedelta(days=29)), _newest), label="Days"
    )
    return days_choice, number_choice


@app.cell
def _(number_choice):
    number = number_choice.value
    return (number,)


@app.cell
def _(days_choice):
    first, last = days_choice.value
    return first, last


@app.cell
def _(database, refresh):
    refresh.value  # noqa: B018
    last_failure = find_failure(database)
    return (last_failure,)


@app.cell
def _(query):
    standing = query(
        f"""
        SELECT
            ({activity.AS_OF}) AS as_of,
            (SELECT max(complete_since) FROM msgbubbles.stream_coverage WHERE stream = 'messages') AS complete_since,
            (SELECT count(*) FROM staging.stg_messages) AS messages,
            (SELECT max(message_at) FROM staging.stg_messages) AS newest_message_at,
            (SELECT count(*) FROM marts.thread_activity WHERE deleted_at IS NULL) AS threads,
            (SELECT count(*) FROM marts.thread_activity WHERE waiting_on = 'us') AS threads_waiting_on_us
        """
    )
    as_of = None if pd.isna(standing["as_of"][0]) else standing["as_of"][0]
    return as_of, standing


@app.cell
def _(as_of, first, last, number, query):
    # The first row is of the chosen days, the second of as many days before them.
    figures = query(activity.FIGURES, as_of=as_of, first=first, last=last, number=number)
    return (figures,)


@app.cell(hide_code=True)
def _():
    threads_choice = mo.ui.radio(["Waiting on us", "All"], value="Waiting on us", inline=True, label="Chats")
    return (threads_choice,)


@app.cell
def _(as_of, number, query, threads_choice):
    waiting_times = query(
        """
        WITH waiting AS (
            SELECT epoch($as_of) - epoch(unanswered_since) AS seconds
            FROM marts.thread_activity
            WHERE waiting_on = 'us' AND ($number IS NULL OR from_handle = $number)
        )
        SELECT
            CASE
                WHEN seconds < 3600 THEN '< 1 h'
                WHEN seconds < 4 * 3600 THEN '1–4 h'
                WHEN seconds < 24 * 3600 THEN '4–24 h'
                WHEN seconds < 3 * 86400 THEN '1–3 days'
                WHEN seconds < 7 * 86400 THEN '3–7 days'
                WHEN seconds < 28 * 86400 THEN '1–4 weeks'
                ELSE '> 4 weeks'
            END AS waited,
            count(*) AS threads
        FROM waiting
        GROUP BY waited
        ORDER BY waited
        """,
        as_of=as_of,
        number=number,
    )
    waiting = query(
        """
        SELECT
            coalesce(nullif(title, ''), remote_handle) AS "Who",
            epoch($as_of) - epoch(unanswered_since) AS "Waiting",
            strftime(unanswered_since, '%Y-%m-%d %H:%M') AS "Since (UTC)",
            target AS "Target",
            coalesce(label, from_handle) AS "Our number",
            main_channel AS "Channel",
            messages_total AS "Messages",
            chat_id AS "Chat"
        FROM marts.thread_activity LEFT JOIN msgbubbles.numbers ON handle = from_handle
            LEFT JOIN (SELECT chat_id, state AS target FROM marts.sla_events WHERE answered_at IS NULL) USING (chat_id)
        WHERE ($all OR waiting_on = 'us') AND ($number IS NULL OR from_handle = $number)
        ORDER BY unanswered_since NULLS LAST, latest_message_at DESC, chat_id
        LIMIT 500
        """,
        as_of=as_of,
        all=threads_choice.value == "All",
        number=number,
    )
    waiting["Waiting"] = waiting["Waiting"].map(format_duration)
    waiting["Target"] = waiting["Target"].fillna("–")
    return waiting, waiting_times


@app.cell(hide_code=True)
def _(waiting):
    threads_table = table(waiting, selection="single")
    return (threads_table,)


@app.cell
def _(threads_table):
    thread = None if threads_table.value.empty else threads_table.value["Chat"].iloc[0]
    return (thread,)


@app.cell
def _(query, thread):
    thread_messages = query(
        """
        SELECT
            strftime(m.message_at, '%Y-%m-%d %H:%M:%S') AS "Time (UTC)",
            coalesce(m.side, m.direction) AS "Side",
            m.sender AS "Sender",
            text AS "Text",
            status AS "Status",
            m.reply_seconds AS "Reply after",
            m.attachment_count AS "Attachments"
        FROM staging.int_thread_messages AS m INNER JOIN staging.stg_messages AS s USING (message_id)
        WHERE m.chat_id = $thread
        ORDER BY place_in_thread DESC
        LIMIT 500
        """,
        thread=thread,
    )
    thread_messages["Reply after"] = thread_messages["Reply after"].map(format_duration)
    if thread_messages["Text"].isna().all():  # the privacy policy keeps no texts
        thread_messages = thread_messages.drop(columns="Text")
    return (thread_messages,)


@app.cell
def _(first, last, number, query):
    grain = choose_grain((last - first).days)
    # Days are in the account's time zone. They are sent as midnight UTC, so that no browser shifts them.
    volume = query(
        f"""
        WITH chosen AS (
            SELECT date_trunc('{grain}', day) AS began, messages_total, messages_inbound, messages_outbound
            FROM marts.thread_activity_daily
            WHERE day BETWEEN $first AND $last
                AND (
                    $number IS NULL
                    OR chat_id IN (SELECT chat_id FROM marts.thread_activity WHERE from_handle = $number)
                )
        ),
        counted AS (
            SELECT began, 'them' AS side, sum(messages_inbound) AS messages FROM chosen GROUP BY began
            UNION ALL
            SELECT began, 'us', sum(messages_outbound) FROM chosen GROUP BY began
            UNION ALL
            SELECT began, 'unknown', sum(messages_total - messages_inbound - messages_outbound)
            FROM chosen GROUP BY began
        )
        SELECT began::TIMESTAMP AT TIME ZONE 'UTC' AS began, side, messages::BIGINT AS messages
        FROM counted
        WHERE messages > 0
        ORDER BY began, side
        """,
        first=first,
        last=last,
        number=number,
    )
    return grain, volume


@app.cell
def _(as_of, first, last, number, query):
    answers = query(activity.RESPONSES, as_of=as_of, first=first, last=last, number=number)
    return (answers,)


@app.cell
def _(first, last, number, query):
    replies = query(
        """
        WITH replies AS (
            SELECT
                side,
                CASE
                    WHEN reply_seconds < 60 THEN '< 1 min'
                    WHEN reply_seconds < 5 * 60 THEN '1–5 min'
                    WHEN reply_seconds < 15 * 60 THEN '5–15 min'
                    WHEN reply_seconds < 60 * 60 THEN '15–60 min'
                    WHEN reply_seconds < 4 * 3600 THEN '1–4 h'
                    WHEN reply_seconds < 24 * 3600 THEN '4–24 h'
                    WHEN reply_seconds < 7 * 86400 THEN '1–7 days'
                    ELSE '> 7 days'
                END AS took
            FROM staging.int_thread_messages
            WHERE reply_seconds IS NOT NULL AND day BETWEEN $first AND $last
                AND ($number IS NULL OR from_handle = $number)
        )
        SELECT side, took, count(*) AS replies, count(*) / sum(count(*)) OVER (PARTITION BY side) AS share
        FROM replies
        GROUP BY side, took
        ORDER BY side, took
        """,
        first=first,
        last=last,
        number=number,
    )
    reply_quantiles = query(
        """
        SELECT
            side,
            count(*) AS replies,
            quantile_cont(reply_seconds, 0.5) AS median_seconds,
            quantile_cont(reply_seconds, 0.9) AS p90_seconds
        FROM staging.int_thread_messages
        WHERE reply_seconds IS NOT NULL AND day BETWEEN $first AND $last
            AND ($number IS NULL OR from_handle = $number)
        GROUP BY side
        ORDER BY side DESC
        """,
        first=first,
        last=last,
        number=number,
    )
    return replies, reply_quantiles


@app.cell
def _(first, grain, last, number, query):
    # By the day on which they asked.
    targets = query(
        f"""
        WITH chosen AS (
            UNPIVOT (
                FROM marts.sla_daily
                WHERE day BETWEEN $first AND $last AND ($number IS NULL OR from_handle = $number)
            )
            ON targets_met AS met, targets_breached AS breached, targets_running AS running
            INTO NAME state VALUE targets
        )
        SELECT
            date_trunc('{grain}', day)::TIMESTAMP AT TIME ZONE 'UTC' AS began,
            metric,
            state,
            sum(targets)::BIGINT AS targets
        FROM chosen
        WHERE targets > 0
        GROUP BY began, metric, state
        ORDER BY began, metric, state
        """,
        first=first,
        last=last,
        number=number,
    )
    met = query(activity.TARGETS, first=first, last=last, number=number)
    return met, targets


@app.cell
def _(first, last, number, query):
    delivery = query(activity.DELIVERY, first=first, last=last, number=number)
    return (delivery,)


@app.cell
def _(first, last, number, query):
    hours = query(
        """
        WITH counted AS (
            SELECT weekday, hour, count(*) AS messages, count(*) FILTER (direction = 'inbound') AS inbound
            FROM staging.int_thread_messages
            WHERE day BETWEEN $first AND $last AND ($number IS NULL OR from_handle = $number)
            GROUP BY weekday, hour
        ),
        week AS (
            SELECT weekday, hour
            FROM range(1, 8) AS weekdays (weekday) CROSS JOIN range(24) AS hours (hour)
            WHERE EXISTS (FROM counted)
        )
        SELECT
            ['Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'][weekday] AS day,
            hour,
            coalesce(messages, 0)::BIGINT AS messages,
            coalesce(inbound, 0)::BIGINT AS inbound
        FROM week LEFT JOIN counted USING (weekday, hour)
        ORDER BY weekday, hour
        """,
        first=first,
        last=last,
        number=number,
    )
    return (hours,)


@app.cell
def _(query):
    _first = query("SELECT min(valid_from) AS first FROM marts.group_membership")["first"][0]
    membership_grain = "day" if pd.isna(_first) else choose_grain((datetime.now(UTC) - _first).days)
    # A deleted group has no members after its deletion.
    members = query(
        f"""
        WITH membership AS (
            SELECT evidence, valid_from, least(valid_to, deleted_at) AS valid_until
            FROM marts.group_membership INNER JOIN marts.thread_activity USING (chat_id)
            WHERE coalesce(valid_from < least(valid_to, deleted_at), true)
        ),
        periods AS (
            SELECT unnest(generate_series(
                date_trunc('{membership_grain}', (SELECT min(valid_from) FROM membership)),
                date_trunc('{membership_grain}', now()),
                INTERVAL 1 {membership_grain}
            )) AS began
        ),
        kinds AS (SELECT DISTINCT evidence FROM membership),
        changes AS (
            SELECT evidence, date_trunc('{membership_grain}', valid_from) AS began, 1 AS change FROM membership
            UNION ALL
            SELECT evidence, date_trunc('{membership_grain}', valid_until), -1
            FROM membership WHERE valid_until IS NOT NULL
        ),
        changed AS (SELECT evidence, began, sum(change) AS change FROM changes GROUP BY evidence, began)
        SELECT
            began,
            evidence,
            coalesce(sum(change) OVER (PARTITION BY evidence ORDER BY began), 0)::BIGINT AS members
        FROM periods CROSS JOIN kinds LEFT JOIN changed USING (evidence, began)
        ORDER BY began, evidence
        """
    )
    return members, membership_grain


@app.cell
def _(query):
    _groups = query(
        """
        SELECT coalesce(title, remote_handle, 'group') || ' · ' || left(chat_id, 8) AS name, chat_id
        FROM marts.group_membership INNER JOIN marts.thread_activity USING (chat_id)
        GROUP BY ALL
        ORDER BY count(*) DESC, chat_id
        LIMIT 500
        """
    )
    _options = {str(row.name): row.chat_id for row in _groups.itertuples(index=False)}
    group_choice = mo.ui.dropdown(_options, value=next(iter(_options), None), label="Group", searchable=True)
    return (group_choice,)


@app.cell
def _(group_choice):
    group = group_choice.value
    return (group,)


@app.cell
def _(group, query):
    membership = query(
        """
        SELECT
            handle,
            evidence,
            confidence,
            valid_from,
            least(valid_to, deleted_at) AS valid_until,
            greatest(coalesce(valid_until, now()), valid_from) AS drawn_until,
            message_count
        FROM marts.group_membership INNER JOIN marts.thread_activity USING (chat_id)
        WHERE chat_id = $group
        ORDER BY valid_from, handle
        """,
        group=group,
    )
    return (membership,)


@app.cell
def _(as_of, query):
    # The account's history begins with its first chat or message.
    coverage = query(
        """
        WITH account AS (
            SELECT least(
                (SELECT min(created_at) FROM staging.stg_chats), (SELECT min(message_at) FROM staging.stg_messages)
            ) AS began_at
        ),
        streams AS (
            SELECT stream, began_at, greatest(complete_since, began_at) AS complete_since, $as_of AS complete_to
            FROM msgbubbles.stream_coverage CROSS JOIN account
            WHERE began_at IS NOT NULL AND complete_since IS NOT NULL
        )
        SELECT stream, 'read' AS state, complete_since AS "from", complete_to AS "to" FROM streams
        UNION ALL
        SELECT stream, 'not read', began_at, complete_since FROM streams WHERE began_at < complete_since
        UNION ALL
        SELECT stream, 'not read', complete_to, now() FROM streams WHERE complete_to < now()
        ORDER BY stream, "from"
        """,
        as_of=as_of,
    )
    return (coverage,)


@app.cell
def _(query):
    runs = query(
        """
        SELECT
            strftime(started_at, '%Y-%m-%d %H:%M') AS "Run (UTC)",
            outcome AS "Outcome",
            exit_status AS "Exit status",
            requests_total AS "Requests",
            round(epoch(ended_at - started_at), 1) AS "Seconds"
        FROM msgbubbles.sync_runs
        ORDER BY started_at DESC
        LIMIT 50
        """
    )
    return (runs,)


@app.cell(hide_code=True)
def _(database, days_choice, last_failure, number_choice, refresh, skipped):
    mo.vstack(
        [
            mo.md(f"# MsgBubbles\n\n`{os.path.relpath(database)}`"),
            mo.hstack([number_choice, days_choice, refresh], justify="start", align="end", wrap=True),
            *([mo.callout(mo.md(last_failure), kind="danger")] if last_failure else []),
            *([mo.callout(mo.md(skipped), kind="warn")] if skipped else []),
        ]
    )
    return


@app.cell(hide_code=True)
def _(as_of, figures, first, last, standing):
    _now, _before = figures.itertuples(index=False)
    mo.vstack(
        [
            mo.md(f"## {first:%d %b} to {last:%d %b %Y}"),
            stats(
                ("Fresh as of", "–" if as_of is None else format_age(as_of), format_minute(as_of)),
                ("Waiting on us", f"{standing['threads_waiting_on_us'][0]:,}", "chats, now"),
                (
                    "Messages to us",
                    f"{_now.messages_inbound:,}",
                    compare(_now.messages_inbound, _before.messages_inbound),
                ),
                (
                    "Messages from us",
                    f"{_now.messages_outbound:,}",
                    compare(_now.messages_outbound, _before.messages_outbound),
                ),
                ("New chats", f"{_now.threads_new:,}", compare(_now.threads_new, _before.threads_new)),
                ("Answered in an hour", percent(_now.within_hour), f"before: {percent(_before.within_hour)}"),
                (
                    "Median answer",
                    format_duration(_now.median_seconds),
                    f"before: {format_duration(_before.median_seconds)}",
                ),
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def _(threads_choice, threads_table, waiting, waiting_times):
    _total = int(waiting_times["threads"].sum())
    mo.vstack(
        [
            mo.md("## Chats waiting on us"),
            draw(
                alt.Chart(waiting_times, title=f"{_total:,} chats by waiting time")
                .mark_bar(color=SIDES["us"])
                .encode(
                    alt.X("waited:O", sort=WAITS, title="Waiting time", axis=alt.Axis(labelAngle=0)),
                    alt.Y("threads:Q", title="Chats", axis=alt.Axis(tickMinStep=1)),
                    tooltip=[
                        alt.Tooltip("waited:O", title="Waiting time"),
                        alt.Tooltip("threads:Q", format=",", title="Chats"),
                    ],
                )
                .properties(height=180),
                waiting_times,
                "No chat is waiting on us.",
            ),
            threads_choice,
            *([] if waiting.empty else [threads_table, mo.md("Select a chat to see its messages.")]),
        ]
    )
    return


@app.cell(hide_code=True)
def _(thread, thread_messages, waiting):
    mo.stop(thread is None)
    _who = next(iter(waiting.loc[waiting["Chat"] == thread, "Who"]), "Chat")
    mo.vstack([mo.md(f"### {_who}\n\n`{thread}`, the latest messages first"), table(thread_messages)])
    return


@app.cell(hide_code=True)
def _(grain, volume):
    mo.vstack(
        [
            mo.md("## Message volume"),
            draw(
                alt.Chart(volume, title=f"Messages per {grain} and side")
                .mark_bar()
                .encode(
                    time_axis("began", f"{grain.capitalize()} (the account's time zone)").timeUnit(BINS[grain]),
                    alt.Y("messages:Q", title=f"Messages per {grain}"),
                    colour(volume, "side", SIDES, "Written by"),
                    tooltip=[
                        day_tooltip("began", grain.capitalize()),
                        alt.Tooltip("side:N", title="Written by"),
                        alt.Tooltip("messages:Q", format=",", title="Messages"),
                    ],
                )
                .properties(height=220),
                volume,
                "No messages yet.",
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def _(answers, replies, reply_quantiles):
    _shown = pd.DataFrame(
        {
            "Our number": answers["label"].fillna(answers["from_handle"]),
            "Asked": answers["asked"],
            "Answered": (answers["answered"] / answers["asked"]).map(percent),
            "Within 5 min": answers["within_5_minutes"].map(percent),
            "Within 1 hour": answers["within_hour"].map(percent),
            "Median": answers["median_seconds"].map(format_duration),
            "90% within": answers["p90_seconds"].map(format_duration),
        }
    )
    _answer = {"us": "We answer", "them": "They answer"}
    mo.vstack(
        [
            mo.md("""
            ## Answers

            The table has all turns in which a contact wrote in a direct chat; a turn without an answer counts as not
            answered in time.

            A reply is the first message of a turn. Its time is measured from the first message that it answers. A
            message that resumes a chat after weeks counts as a reply, too.
            """),
            *([] if answers.empty else [table(_shown)]),
            stats(
                *(
                    (
                        f"{_answer[row.side]}, median",
                        format_duration(row.median_seconds),
                        f"90% within {format_duration(row.p90_seconds)}; {row.replies:,} replies",
                    )
                    for row in reply_quantiles.itertuples()
                )
            ),
            draw(
                alt.Chart(replies, title="Replies by reply time")
                .mark_bar()
                .encode(
                    alt.X("took:O", sort=REPLY_TIMES, title="Reply time", axis=alt.Axis(labelAngle=0)),
                    alt.XOffset("side:N", sort=["them", "us"]),
                    alt.Y("share:Q", axis=alt.Axis(format="%"), title="Share of the side's replies"),
                    colour(replies, "side", SIDES, "Reply by"),
                    tooltip=[
                        alt.Tooltip("side:N", title="Reply by"),
                        alt.Tooltip("took:O", title="Reply time"),
                        alt.Tooltip("replies:Q", format=",", title="Replies"),
                        alt.Tooltip("share:Q", format=".1%", title="Share"),
                    ],
                )
                .properties(height=220),
                replies,
                "No replies yet.",
            ),
        ],
        gap=1,
    )
    return


@app.cell(hide_code=True)
def _(grain, met, targets):
    mo.vstack(
        [
            mo.md("## Response targets"),
            stats(
                *(
                    (
                        f"{row.metric.replace('_', ' ').capitalize()}, met",
                        percent(row.met_rate),
                        f"{row.met:,} met, {row.breached:,} breached, {row.running:,} running",
                    )
                    for row in met.itertuples()
                )
            ),
            draw(
                alt.Chart(targets, title=f"Targets by the {grain} on which they asked")
                .mark_bar()
                .encode(
                    time_axis("began", f"{grain.capitalize()} (the account's time zone)").timeUnit(BINS[grain]),
                    alt.Y("sum(targets):Q", title="Targets"),
                    colour(targets, "state", TARGETS, "State"),
                    tooltip=[
                        day_tooltip("began", grain.capitalize()),
                        alt.Tooltip("state:N", title="State"),
                        alt.Tooltip("sum(targets):Q", format=",", title="Targets"),
                    ],
                )
                .properties(height=180),
                targets,
                "No targets. `[transforms.sla]` sets them.",
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def _(delivery):
    _shown = delivery.assign(**{name: delivery[name].map(percent) for name in ("failed", "delivered", "read")})
    _shown = _shown.rename(columns=str.capitalize)
    mo.vstack(
        [
            mo.md("## Delivery"),
            mo.callout(mo.md("We sent nothing."), kind="neutral") if delivery.empty else table(_shown),
        ]
    )
    return


@app.cell(hide_code=True)
def _(hours):
    mo.vstack(
        [
            mo.md("## Busiest hours"),
            draw(
                alt.Chart(hours, title="Messages by hour of the week")
                .mark_rect()
                .encode(
                    alt.X("hour:O", title="Hour of the day (the account's time zone)", axis=alt.Axis(labelAngle=0)),
                    alt.Y("day:O", sort=WEEKDAYS, title=None),
                    alt.Color("messages:Q", scale=alt.Scale(scheme="viridis", domainMin=0), title="Messages"),
                    tooltip=[
                        alt.Tooltip("day:O", title="Day"),
                        alt.Tooltip("hour:O", title="Hour"),
                        alt.Tooltip("messages:Q", format=",", title="Messages"),
                        alt.Tooltip("inbound:Q", format=",", title="Inbound"),
                    ],
                )
                .properties(height=190),
                hours,
                "No messages yet.",
            ),
        ]
    )
    return


@app.cell(hide_code=True)
def _(group_choice, members, membership, membership_grain):
    _all_groups = draw(
        alt.Chart(members, title="Known members of all groups by evidence")
        .mark_area(interpolate="step-after", opacity=0.85)
        .encode(
            time_axis("began", f"{membership_grain.capitalize()} (UTC)"),
            alt.Y("members:Q", title=f"Members at the end of the {membership_grain}"),
            colour(members, "evidence", EVIDENCE, "Evidence"),
            tooltip=[
                day_tooltip("began", f"{membership_grain.capitalize()} (UTC)"),
                alt.Tooltip("evidence:N", title="Evidence"),
                alt.Tooltip("members:Q", format=",", title="Members"),
            ],
        )
        .properties(height=220),
        members,
        "No groups yet.",
    )
    _one_group = draw(
        alt.Chart(membership, title="Known membership in the group")
        .mark_bar(height={"band": 0.6})
        .encode(
            time_axis("valid_from", "Time (UTC)"),
            alt.X2("drawn_until:T"),
            alt.Y("handle:N", sort=alt.SortField("valid_from"), title=None, axis=alt.Axis(labelLimit=240)),
            colour(membership, "evidence", EVIDENCE, "Evidence"),
            tooltip=[
                alt.Tooltip("handle:N", title="Handle"),
                time_tooltip("valid_from", "From (UTC)"),
                time_tooltip("valid_until", "Until (UTC)"),
                alt.Tooltip("evidence:N", title="Evidence"),
                alt.Tooltip("confidence:N", title="Confidence"),
                alt.Tooltip("message_count:Q", format=",", title="Messages"),
            ],
        )
        .properties(height=alt.Step(22)),
        membership,
        "No group is selected.",
    )
    mo.vstack(
        [
            mo.md("""
            ## Group membership

            Inferred from evidence. `operation`: we added the handle. `participant_list`: a list contained it.
            `own_number`: it is our number in the group. `message`: it wrote there. A silent member that nobody recorded
            is missing.
            """),
            _all_groups,
            *([] if members.empty else [group_choice, _one_group]),
        ],
        gap=1,
    )
    return


@app.cell(hide_code=True)
def _(coverage, runs, standing):
    _now = standing.iloc[0]
    if pd.isna(_now.complete_since):
        _since = ("–", "nothing has been read")
    elif _now.complete_since.year <= 1970:
        _since = ("the start", "everything has been read")
    else:
        _since = (f"{_now.complete_since:%Y-%m-%d}", "older messages have not been read yet")
    _newest = f"newest {format_minute(_now.newest_message_at)}" if _now.messages else "none yet"
    mo.vstack(
        [
            mo.md("## Completeness"),
            stats(
                ("Complete since", *_since),
                ("Messages", f"{_now.messages:,}", _newest),
                ("Chats", f"{_now.threads:,}", f"{_now.threads_waiting_on_us:,} waiting on us"),
            ),
            draw(
                alt.Chart(coverage, title="Intervals that have been read")
                .mark_bar(height=14)
                .encode(
                    time_axis("from", "Time of the message, or of the chat's latest message (UTC)"),
                    alt.X2("to:T"),
                    alt.Y("stream:N", title=None),
                    colour(coverage, "state", STATES, "State"),
                    tooltip=[
                        alt.Tooltip("stream:N", title="Stream"),
                        alt.Tooltip("state:N", title="State"),
                        time_tooltip("from", "From (UTC)"),
                        time_tooltip("to", "To (UTC)"),
                    ],
                )
                .properties(height=60),
                coverage,
                "No chats or messages yet.",
            ),
            mo.accordion({"Latest runs": table(runs)}),
        ]
    )
    return


@app.cell(hide_code=True)
def _(database):
    mo.md(f"""
    ## Your own queries

    Three examples. Edit and run them with `marimo edit notebooks/explore.py -- --database {database}`.
    `transforms/README.md` describes the tables and has more queries.

    1. Which chats have waited longest for our answer?
    2. How busy was each of our numbers in its last week, and how fast did we reply?
    3. With which contacts do we exchange most messages?
    """)
    return


@app.cell
def _(warehouse):
    longest_waiting = mo.sql(
        f"""
        -- Which chats have waited longest for our answer?
        SELECT coalesce(title, remote_handle) AS who, unanswered_since, messages_total
        FROM marts.thread_activity
        WHERE waiting_on = 'us'
        ORDER BY unanswered_since
        LIMIT 10
        """,
        engine=warehouse,
    )
    return (longest_waiting,)


@app.cell
def _(warehouse):
    numbers_last_week = mo.sql(
        f"""
        -- How busy was each of our numbers in its last week, and how fast did we reply?
        SELECT
            from_handle,
            sum(messages_inbound) AS messages_inbound,
            sum(messages_outbound) AS messages_outbound,
            sum(threads_new) AS threads_new,
            round(median(our_median_reply_seconds) / 60, 1) AS typical_reply_minutes
        FROM marts.number_activity_daily
        WHERE day > (SELECT max(day) FROM marts.number_activity_daily) - 7
        GROUP BY from_handle
        ORDER BY messages_inbound DESC
        """,
        engine=warehouse,
    )
    return (numbers_last_week,)


@app.cell
def _(warehouse):
    busiest_contacts = mo.sql(
        f"""
        -- With which contacts do we exchange most messages?
        SELECT handle, threads, groups_current, messages_inbound, messages_outbound, last_contact_at
        FROM marts.contact
        ORDER BY coalesce(messages_inbound, 0) + coalesce(messages_outbound, 0) DESC, handle
        LIMIT 10
        """,
        engine=warehouse,
    )
    return (busiest_contacts,)


@app.function(hide_code=True)
def find_database() -> Path:
    """Return --database, else MSGBUBBLES_DATABASE, else the job's default file, else the file of `make demo`.

    Of the default files, the first that has marts is shown, if one has.
    """
    named = mo.cli_args().get("database") or os.environ.get("MSGBUBBLES_DATABASE")
    if named:
        return Path(str(named)).expanduser().resolve()
    existing = [database for database in DEFAULTS if database.exists()]
    with_marts = (database for database in existing if find_problem(database) is None)
    return next(with_marts, next(iter(existing), DEFAULTS[-1]))


@app.function(hide_code=True)
def find_problem(database: Path) -> str | None:
    """Return why the file cannot be shown and how to fix it; null if it can be shown."""
    job = f"`python pipelines/chats.py --database {database}`"
    if ".msgbubbles" in database.parts:
        return f"`{database}` is the job's work file, and opening it blocks the job. Open the published file instead."
    if not database.exists():
        return (
            f"`{database}` does not exist. Create it with {job}, create the demo with `make demo`, or pass another "
            "file with `-- --database PATH`."
        )
    try:
        warehouse = connect(database)
    except duckdb.Error as error:
        return f"`{database}` cannot be opened as a DuckDB file ({type(error).__name__}). Publish it again with {job}."
    with warehouse:
        relations = warehouse.execute(
            "SELECT table_schema || '.' || table_name FROM information_schema.tables"
        ).fetchall()
    if ("msgbubbles.accounts",) in relations:
        account_file = f"{database.stem}_NAME{database.suffix}"
        return f"`{database}` contains several accounts, but this notebook shows one. Open its file: `{account_file}`."
    missing = set(RELATIONS) - {name for (name,) in relations}
    if missing:
        return f"`{database}` has no table `{min(missing)}`. Build it with {job}, without `--no-transform`."
    return None


@app.function(hide_code=True)
def connect(database: Path) -> duckdb.DuckDBPyConnection:
    """Open the current file read-only.

    It is attached, because `duckdb.connect` would return the file that this process opened before under that name, even
    if the job has replaced it since.
    """
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"ATTACH '{str(database).replace(chr(39), chr(39) * 2)}' AS warehouse (READ_ONLY)")
    connection.execute("USE warehouse")
    return connection


@app.function(hide_code=True)
def choose_grain(days: float) -> str:
    """Return the time unit that draws so many days with at most some hundred bars."""
    return "day" if days <= 200 else "week" if days <= 1400 else "month"


@app.function(hide_code=True)
def format_age(at: datetime) -> str:
    return f"{format_duration((datetime.now(UTC) - at).total_seconds())} ago"


@app.function(hide_code=True)
def format_minute(at: datetime | None) -> str:
    return "" if pd.isna(at) else f"{at:%Y-%m-%d %H:%M} UTC"


@app.function(hide_code=True)
def time_axis(field: str, title: str) -> alt.X:
    """Build a time axis in UTC, whatever the browser's time zone."""
    axis = alt.Axis(format="%Y-%m-%d", tickCount=8, labelOverlap=True)
    return alt.X(field, type="temporal", scale=alt.Scale(type="utc"), title=title, axis=axis)


@app.function(hide_code=True)
def colour(frame: pd.DataFrame, field: str, colours: dict[str, str], title: str | None) -> alt.Color:
    """Build a colour scale of the values that occur."""
    present = [value for value in colours if value in set(frame[field])]
    scale = alt.Scale(domain=present, range=[colours[value] for value in present])
    return alt.Color(field, type="nominal", scale=scale, title=title)


@app.function(hide_code=True)
def time_tooltip(field: str, title: str) -> alt.Tooltip:
    """Build a tooltip of a timestamp in UTC, whatever the browser's time zone."""
    return alt.Tooltip(f"{field}:T", timeUnit="utcyearmonthdatehoursminutes", format="%Y-%m-%d %H:%M", title=title)


@app.function(hide_code=True)
def day_tooltip(field: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:T", timeUnit="utcyearmonthdate", format="%Y-%m-%d", title=title)


@app.function(hide_code=True)
def draw(chart: alt.Chart, frame: pd.DataFrame, empty_message: str) -> object:
    """Return the chart, or a message if it has no data. Text and background have no colour, so that themes apply."""
    if frame.empty:
        return mo.callout(mo.md(empty_message), kind="neutral")
    return (
        chart.properties(width="container", background="transparent")
        .configure_title(anchor="start", fontSize=13, offset=12)
        .configure_axis(titleFontWeight="normal", gridOpacity=0.3, domainOpacity=0.4, tickOpacity=0.4)
        .configure_legend(titleFontWeight="normal")
        .configure_view(strokeOpacity=0)
    )


@app.function(hide_code=True)
def table(frame: pd.DataFrame, selection: Literal["single"] | None = None) -> Any:
    return mo.ui.table(frame, selection=selection, page_size=8, show_column_summaries=False, show_data_types=False)


@app.function(hide_code=True)
def find_failure(database: Path) -> str | None:
    """Return when and why the last run failed; null if it was complete, or if its record is not on this machine."""
    with suppress(OSError, ValueError, IndexError):
        log = database.parent / ".msgbubbles" / database.stem / "runs.jsonl"
        run = json.loads(log.read_text().splitlines()[-1])
        if run["exit_status"] not in (0, 3):
            return f"The last run, {run['started_at'][:16].replace('T', ' ')} UTC, did not complete: {run['error']}"
    return None


@app.function(hide_code=True)
def compare(now: int, before: int) -> str:
    """Return what there was in the period before, and the difference from it in percent."""
    return f"before: {before:,} ({100 * (now - before) / before:+.0f}%)" if before else "before: 0"


@app.function(hide_code=True)
def stats(*values: tuple[str, str, str]) -> object:
    """Lay out values with their labels and captions, in as many columns as the window has room for."""
    boxes = "".join(
        mo.stat(value, label=label, caption=caption, bordered=True).text for label, value, caption in values
    )
    grid = "display: grid; gap: 0.8rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr))"
    return mo.Html(f'<div style="{grid}">{boxes}</div>')


@app.function(hide_code=True)
def percent(share: float | None) -> str:
    return "–" if pd.isna(share) else f"{share:.0%}"


if __name__ == "__main__":
    app.run()
