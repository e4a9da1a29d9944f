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
    import re
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
    from msgbubbles_sync.inspect.activity import NOT_BUILT, describe_missing, format_duration, format_percent

    DEFAULTS = (PROJECT / "warehouse.duckdb", PROJECT / "demo.duckdb")
    # The filter of queries about the chosen days and number.
    CHOSEN = "day BETWEEN $first AND $last AND ($number IS NULL OR from_handle = $number)"

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
    REPLY_TIMES = [
        "< 1 min", "1–5 min", "5–15 min", "15–60 min", "1–4 h", "4–24 h", "1–7 days", "> 7 days", "no answer"
    ]  # fmt: skip
    BINS: dict[str, Any] = {"day": "binnedutcyearmonthdate", "week": "binnedutcyearweek", "month": "binnedutcyearmonth"}
    # Columns of tables that are numbers, also as text.
    RIGHT = {
        "Waiting", "Messages", "Asked", "Answered", "Within 5 min", "Within 1 hour", "Median", "90% within", "Sent",
        "Failed", "Delivered", "Read",
    }  # fmt: skip
    HOURS = alt.Axis(labelAngle=0, values=list(range(0, 24, 3)))
    # How tooltips show names, numbers, shares, and days and times in UTC, whatever the browser's time zone.
    TOOLTIPS: dict[str, dict[str, Any]] = {
        "N": {"type": "nominal"},
        "Q": {"type": "quantitative", "format": ","},
        "%": {"type": "quantitative", "format": ".1%"},
        "D": {"type": "temporal", "timeUnit": "utcyearmonthdate", "format": "%Y-%m-%d"},
        "T": {"type": "temporal", "timeUnit": "utcyearmonthdatehoursminutes", "format": "%Y-%m-%d %H:%M"},
    }
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
    _reported: set[str] = set()

    def query(sql: str, **parameters: object) -> pd.DataFrame:
        """Return the rows. What the file lacks is reported once, and the cells that need it are left out."""
        used = {name: parameters[name] for name in set(re.findall(r"\$(\w+)", sql))}
        try:
            return warehouse.sql(sql, params=used).to_arrow_table().to_pandas()
        except NOT_BUILT as error:
            missing = describe_missing(error, sql)
        is_new = missing not in _reported
        _reported.add(missing)
        notice = note(f"`{database}` lacks {missing}. Build it with {job_command(database)}.", "warn")
        raise mo.MarimoStopError(notice if is_new else None)

    return query, warehouse


@app.cell
def _(database):
    # From a connection of its own: what is chosen stays when the file is read again.
    with connect(database) as _connection:
        _numbers = _connection.execute(
            """
            SELECT from_handle, max(label)
            FROM msgbubbles.chats LEFT JOIN msgbubbles.numbers ON handle = from_handle
            WHERE from_handle IS NOT NULL
            GROUP BY from_handle
            ORDER BY count(*) DESC, from_handle
            """
        ).fetchall()
        _days = (None, None)
        with suppress(*NOT_BUILT):
            [_days] = _connection.execute("SELECT min(day), max(day) FROM marts.calendar").fetchall()
    _newest = _days[1] or datetime.now(UTC).date()
    _oldest = _days[0] or _newest - timedelta(days=365)
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
            (SELECT count(*) FROM marts.thread_activity WHERE deleted_at IS NULL) AS threads
        """
    )
    as_of = None if pd.isna(standing["as_of"][0]) else standing["as_of"][0]
    return as_of, standing


@app.cell
def _(as_of, first, last, number):
    chosen = {"as_of": as_of, "first": first, "last": last, "number": number}
    return (chosen,)


@app.cell
def _(chosen, query):
    # The first row is of the chosen days, the second of those that are over, the third of as many before them.
    figures = query(activity.FIGURES, **chosen)
    return (figures,)


@app.cell
def _(chosen, query):
    answers = query(activity.RESPONSES, **chosen)
    return (answers,)


@app.cell
def _(chosen, query):
    met = query(activity.TARGETS, **chosen)
    return (met,)


@app.cell
def _(chosen, query):
    delivery = query(activity.DELIVERY, **chosen)
    return (delivery,)


@app.cell(hide_code=True)
def _():
    threads_choice = mo.ui.radio(["Waiting on us", "All"], value="Waiting on us", inline=True, label="Chats")
    return (threads_choice,)


@app.cell
def _(chosen, query, threads_choice):
    waiting = query(activity.WAITING, **chosen, all=threads_choice.value == "All")
    _ages = waiting.loc[waiting["is_group"].eq(False), "age"]
    waiting_times = _ages.value_counts().rename_axis("waited").reset_index(name="threads")
    return waiting, waiting_times


@app.cell(hide_code=True)
def _(waiting):
    _shown = {
        "Who": waiting["who"] + waiting["is_group"].map({True: " (group)"}).fillna(""),
        "Waiting": waiting["waited_seconds"].map(format_duration),
        "Target": waiting["target"].fillna("–"),
        "Our number": waiting["label"].fillna(waiting["from_handle"]),
        "Since (UTC)": waiting["unanswered_since"].dt.strftime("%Y-%m-%d %H:%M").fillna("–"),
        "Channel": waiting["main_channel"],
        "Messages": waiting["messages_total"],
        "Chat": waiting["chat_id"],
    }
    if waiting["target"].isna().all():
        del _shown["Target"]
    threads_table = table(pd.DataFrame(_shown), selection="single", hidden_columns=["Chat"])
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
            m.turn_number AS "Turn",
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
def _(chosen, first, last, query):
    grain = choose_grain((last - first).days)
    # Days are in the account's time zone. They are sent as midnight UTC, so that no browser shifts them.
    volume = query(
        f"""
        WITH counted AS (
            UNPIVOT (
                SELECT
                    day,
                    d.messages_inbound AS them,
                    d.messages_outbound AS us,
                    d.messages_total - d.messages_inbound - d.messages_outbound AS unknown
                FROM marts.thread_activity_daily AS d INNER JOIN marts.thread_activity USING (chat_id)
                WHERE {CHOSEN}
            )
            ON them, us, unknown INTO NAME side VALUE messages
        )
        SELECT
            date_trunc('{grain}', day)::TIMESTAMP AT TIME ZONE 'UTC' AS began,
            side,
            sum(messages)::BIGINT AS messages
        FROM counted
        WHERE messages > 0
        GROUP BY ALL
        ORDER BY began, side
        """,
        **chosen,
    )
    return grain, volume


@app.cell
def _(chosen, query):
    # Turns of one side in direct chats, by the side that is to answer.
    replies = query(
        f"""
        WITH turns AS (
            SELECT
                CASE side WHEN 'us' THEN 'them' ELSE 'us' END AS side,
                CASE
                    WHEN reply_seconds < 60 THEN '< 1 min'
                    WHEN reply_seconds < 5 * 60 THEN '1–5 min'
                    WHEN reply_seconds < 15 * 60 THEN '5–15 min'
                    WHEN reply_seconds < 60 * 60 THEN '15–60 min'
                    WHEN reply_seconds < 4 * 3600 THEN '1–4 h'
                    WHEN reply_seconds < 24 * 3600 THEN '4–24 h'
                    WHEN reply_seconds < 7 * 86400 THEN '1–7 days'
                    WHEN reply_seconds IS NOT NULL THEN '> 7 days'
                    ELSE 'no answer'
                END AS took
            FROM marts.thread_turns
            WHERE NOT is_group AND {CHOSEN}
        )
        SELECT side, took, count(*) AS turns, count(*) / sum(count(*)) OVER (PARTITION BY side) AS share
        FROM turns
        GROUP BY side, took
        ORDER BY side, took
        """,
        **chosen,
    )
    return (replies,)


@app.cell
def _(chosen, grain, query):
    # By the day on which they asked.
    targets = query(
        f"""
        WITH chosen AS (
            UNPIVOT (FROM marts.sla_daily WHERE {CHOSEN})
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
        **chosen,
    )
    return (targets,)


@app.cell
def _(chosen, query):
    hours = query(
        f"""
        WITH counted AS (
            SELECT weekday, hour, count(*) AS messages, count(*) FILTER (direction = 'inbound') AS inbound
            FROM staging.int_thread_messages
            WHERE {CHOSEN}
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
        **chosen,
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
def _(as_of, database, days_choice, last_failure, number_choice, refresh, skipped):
    _path = min(os.path.relpath(database), str(database), key=len)
    _age = "nothing has been read" if as_of is None else f"as of {format_age(as_of)} ({format_minute(as_of)})"
    mo.vstack(
        [
            mo.md(f"# MsgBubbles\n\n`{_path}`, {_age}"),
            mo.hstack([number_choice, days_choice, refresh], justify="start", align="end", wrap=True),
            *([note(last_failure, "danger")] if last_failure else []),
            *([note(skipped, "warn")] if skipped else []),
        ]
    )
    return


@app.cell(hide_code=True)
def _(figures, first, last, waiting_times):
    _now, _, _before = figures.itertuples(index=False)

    def _count(label: str, name: str) -> tuple[str, str, str]:
        now, complete, before = figures[name]
        change = f" ({100 * (complete - before) / before:+.0f} %)" if before else ""
        return label, f"{now:,}", f"before: {before:,}{change}"

    section(
        f"{first:%d %b} to {last:%d %b %Y}",
        stats(
            ("Waiting on us", f"{waiting_times['threads'].sum():,}", "direct chats, now"),
            (
                "Answered in an hour",
                format_percent(_now.within_hour),
                f"before: {format_percent(_before.within_hour)}",
            ),
            (
                "Median answer",
                format_duration(_now.median_seconds),
                f"before: {format_duration(_before.median_seconds)}",
            ),
            _count("Messages to us", "messages_inbound"),
            _count("Messages from us", "messages_outbound"),
            _count("New chats", "threads_new"),
        ),
        mo.md("Changes compare the complete days with as many days before them."),
    )
    return


@app.cell(hide_code=True)
def _(threads_choice, threads_table, waiting, waiting_times):
    section(
        "Chats waiting on us",
        threads_choice,
        *([] if waiting.empty else [threads_table, mo.md("Select a chat to see its messages.")]),
        draw(
            alt.Chart(waiting_times, title="Direct chats by waiting time")
            .mark_bar(color=SIDES["us"])
            .encode(
                alt.Y("waited:O", sort=activity.AGES, title=None),
                alt.X("threads:Q", title="Chats", axis=alt.Axis(tickMinStep=1, tickCount=6)),
                tooltip=tooltips({"waited:N": "Waiting time", "threads:Q": "Chats"}),
            )
            .properties(height=alt.Step(20)),
            waiting_times,
            "No direct chat is waiting on us.",
        ),
    )
    return


@app.cell(hide_code=True)
def _(thread, thread_messages, waiting):
    mo.stop(thread is None)
    _who = next(iter(waiting.loc[waiting["chat_id"] == thread, "who"]), "Chat")
    mo.vstack([mo.md(f"### {_who}\n\n`{thread}`, the latest messages first"), table(thread_messages)])
    return


@app.cell(hide_code=True)
def _(grain, volume):
    section("Message volume", draw_by_time(volume, grain, "messages", "side", SIDES, "Written by", "No messages yet."))
    return


@app.cell(hide_code=True)
def _(answers, replies):
    _shown = pd.DataFrame(
        {
            "Our number": answers["label"].fillna(answers["from_handle"]),
            "Asked": answers["asked"],
            "Answered": (answers["answered"] / answers["asked"]).map(format_percent),
            "Within 5 min": answers["within_5_minutes"].map(format_percent),
            "Within 1 hour": answers["within_hour"].map(format_percent),
            "Median": answers["median_seconds"].map(format_duration),
            "90% within": answers["p90_seconds"].map(format_duration),
        }
    )
    section(
        "Answers",
        mo.md("""
        All turns in direct chats, by the day on which they began. A turn without an answer counts as not answered in
        time. The time of an answer is measured from the first message of the turn.
        """),
        *([] if answers.empty else [table(_shown)]),
        draw(
            alt.Chart(replies, title="Turns by the time to their answer")
            .mark_bar()
            .encode(
                alt.Y("took:O", sort=REPLY_TIMES, title=None),
                alt.YOffset("side:N", sort=["them", "us"]),
                alt.X("share:Q", axis=alt.Axis(format="%"), title="Share of the turns that the side is to answer"),
                colour(replies, "side", SIDES, "Answer by"),
                tooltip=tooltips(
                    {"side:N": "Answer by", "took:N": "Time to the answer", "turns:Q": "Turns", "share:%": "Share"}
                ),
            )
            .properties(height=260),
            replies,
            "No replies yet.",
        ),
    )
    return


@app.cell(hide_code=True)
def _(grain, met, targets):
    section(
        "Response targets",
        stats(
            *(
                (
                    f"{row.metric.replace('_', ' ').capitalize()}, met",
                    format_percent(row.met_rate),
                    f"{row.met:,} met, {row.breached:,} breached, {row.running:,} running",
                )
                for row in met.itertuples()
            )
        ),
        draw_by_time(targets, grain, "targets", "state", TARGETS, "State", "No targets. `[transforms.sla]` sets them."),
    )
    return


@app.cell(hide_code=True)
def _(delivery):
    _shown = delivery.assign(**{name: delivery[name].map(format_percent) for name in ("failed", "delivered", "read")})
    section("Delivery", note("We sent nothing.") if delivery.empty else table(_shown.rename(columns=str.capitalize)))
    return


@app.cell(hide_code=True)
def _(hours):
    section(
        "Busiest hours",
        draw(
            alt.Chart(hours, title="Messages by hour of the week")
            .mark_rect()
            .encode(
                alt.X("hour:O", title="Hour of the day (the account's time zone)", axis=HOURS),
                alt.Y("day:O", sort=WEEKDAYS, title=None),
                alt.Color("messages:Q", scale=alt.Scale(scheme="viridis", domainMin=0), title="Messages"),
                tooltip=tooltips({"day:N": "Day", "hour:N": "Hour", "messages:Q": "Messages", "inbound:Q": "Inbound"}),
            )
            .properties(height=190),
            hours,
            "No messages yet.",
        ),
    )
    return


@app.cell(hide_code=True)
def _(group_choice, members, membership, membership_grain):
    _unit = f"{membership_grain.capitalize()} (UTC)"
    _all_groups = draw(
        alt.Chart(members, title="Known members of all groups by evidence")
        .mark_area(interpolate="step-after", opacity=0.85)
        .encode(
            time_axis("began", _unit),
            alt.Y("members:Q", title=f"Members at the end of the {membership_grain}"),
            colour(members, "evidence", EVIDENCE, "Evidence"),
            tooltip=tooltips({"began:D": _unit, "evidence:N": "Evidence", "members:Q": "Members"}),
        )
        .properties(height=220),
        members,
        "No groups yet.",
    )
    _handles = alt.Y("handle:N", sort=alt.SortField("valid_from"), title=None, axis=alt.Axis(labelLimit=240))
    _one_group = draw_intervals(
        membership,
        ("valid_from", "drawn_until"),
        _handles,
        colour(membership, "evidence", EVIDENCE, "Evidence"),
        {
            "handle:N": "Handle", "valid_from:T": "From (UTC)", "valid_until:T": "Until (UTC)",
            "evidence:N": "Evidence", "confidence:N": "Confidence", "message_count:Q": "Messages",
        },
        "Known membership in the group",
        "No group is selected.",
    )  # fmt: skip
    section(
        "Group membership",
        mo.md("""
        Inferred from evidence. `operation`: we added the handle. `participant_list`: a list contained it.
        `own_number`: it is our number in the group. `message`: it wrote there. A silent member that nobody recorded
        is missing.
        """),
        _all_groups,
        *([] if members.empty else [group_choice, _one_group]),
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
    _newest = f"newest {_now.newest_message_at:%Y-%m-%d}" if _now.messages else "none yet"
    section(
        "Completeness",
        stats(
            ("Complete since", *_since),
            ("Messages", f"{_now.messages:,}", _newest),
            ("Chats", f"{_now.threads:,}", "without deleted ones"),
        ),
        draw_intervals(
            coverage,
            ("from", "to"),
            alt.Y("stream:N", title=None),
            colour(coverage, "state", STATES, "State"),
            {"stream:N": "Stream", "state:N": "State", "from:T": "From (UTC)", "to:T": "To (UTC)"},
            "Intervals that have been read",
            "No chats or messages yet.",
        ),
        mo.accordion({"Latest runs": table(runs)}),
    )
    return


@app.cell(hide_code=True)
def _(database, query, warehouse):
    query("SELECT handle, threads, messages_inbound, messages_outbound, last_contact_at FROM marts.contact LIMIT 0")
    engine = warehouse
    mo.md(f"""
    ## Your own queries

    An example: with which contacts do we exchange most messages? Edit and run it with
    `marimo edit notebooks/explore.py -- --database {database}`.
    `transforms/README.md` describes the tables and has more queries.
    """)
    return (engine,)


@app.cell
def _(engine):
    busiest_contacts = mo.sql(
        f"""
        SELECT handle, threads, messages_inbound, messages_outbound, last_contact_at
        FROM marts.contact
        ORDER BY coalesce(messages_inbound, 0) + coalesce(messages_outbound, 0) DESC, handle
        LIMIT 10
        """,
        engine=engine,
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
    job = job_command(database)
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
    if not any(name.startswith("marts.") for (name,) in relations):
        return f"`{database}` has no marts. Build them with {job}, without `--no-transform`."
    return None


@app.function(hide_code=True)
def job_command(database: Path) -> str:
    return f"`python pipelines/chats.py --database {database}`"


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
    axis = alt.Axis(format="%Y-%m-%d", tickCount=8, labelOverlap=True, labelSeparation=12)
    return alt.X(field, type="temporal", scale=alt.Scale(type="utc"), title=title, axis=axis)


@app.function(hide_code=True)
def colour(frame: pd.DataFrame, field: str, colours: dict[str, str], title: str | None) -> alt.Color:
    """Build a colour scale of the values that occur."""
    present = [value for value in colours if value in set(frame[field])]
    scale = alt.Scale(domain=present, range=[colours[value] for value in present])
    return alt.Color(field, type="nominal", scale=scale, title=title)


@app.function(hide_code=True)
def tooltips(titles: dict[str, str]) -> list[alt.Tooltip]:
    """Build tooltips from titles by field and kind, such as `began:D`; `TOOLTIPS` has the kinds."""
    fields = [(*field.rsplit(":", 1), title) for field, title in titles.items()]
    return [alt.Tooltip(field, title=title, **TOOLTIPS[kind]) for field, kind, title in fields]


@app.function(hide_code=True)
def draw_intervals(
    frame: pd.DataFrame,
    bounds: tuple[str, str],
    rows: alt.Y,
    colours: alt.Color,
    titles: dict[str, str],
    title: str,
    empty_message: str,
) -> object:
    """Draw a bar from one time to another for each row of the frame, below each other by `rows`."""
    bars = alt.Chart(frame, title=title).mark_bar(height={"band": 0.6})
    encoded = bars.encode(
        time_axis(bounds[0], "Time (UTC)"), alt.X2(f"{bounds[1]}:T"), rows, colours, tooltip=tooltips(titles)
    )
    return draw(encoded.properties(height=alt.Step(24)), frame, empty_message)


@app.function(hide_code=True)
def draw_by_time(
    frame: pd.DataFrame, grain: str, value: str, kind: str, colours: dict[str, str], title: str, empty_message: str
) -> object:
    """Draw stacked bars of a value by kind, of each day, week or month in `began`."""
    what = value.capitalize()
    bars = alt.Chart(frame, title=f"{what} per {grain}").mark_bar()
    encoded = bars.encode(
        time_axis("began", f"{grain.capitalize()} (the account's time zone)").timeUnit(BINS[grain]),
        alt.Y(f"sum({value}):Q", title=what),
        colour(frame, kind, colours, title),
        tooltip=tooltips({"began:D": grain.capitalize(), f"{kind}:N": title, f"sum({value}):Q": what}),
    )
    return draw(encoded.properties(height=200), frame, empty_message)


@app.function(hide_code=True)
def draw(chart: alt.Chart, frame: pd.DataFrame, empty_message: str) -> object:
    """Return the chart, or a message if it has no data. Text and background have no colour, so that themes apply."""
    if frame.empty:
        return note(empty_message)
    return (
        chart.properties(width="container", background="transparent")
        .configure_title(anchor="start", fontSize=13, offset=12)
        .configure_axis(titleFontWeight="normal", gridOpacity=0.3, domainOpacity=0.4, tickOpacity=0.4)
        .configure_legend(titleFontWeight="normal", orient="top")
        .configure_view(strokeOpacity=0)
    )


@app.function(hide_code=True)
def table(
    frame: pd.DataFrame, selection: Literal["single"] | None = None, hidden_columns: list[str] | None = None
) -> Any:
    return mo.ui.table(
        frame,
        selection=selection,
        page_size=10,
        show_column_summaries=False,
        show_data_types=False,
        hidden_columns=hidden_columns,
        text_justify_columns=dict.fromkeys([name for name in frame if name in RIGHT], "right"),
    )


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
def stats(*values: tuple[str, str, str]) -> object:
    """Lay out values with their labels and captions, in as many columns as the window has room for."""
    boxes = "".join(
        mo.stat(value, label=label, caption=caption, bordered=True).text for label, value, caption in values
    )
    grid = "display: grid; gap: 0.8rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr))"
    return mo.Html(f'<div style="{grid}">{boxes}</div>')


@app.function(hide_code=True)
def section(title: str, *parts: object) -> object:
    return mo.vstack([mo.md(f"## {title}"), *parts], gap=1)


@app.function(hide_code=True)
def note(text: str, kind: Literal["neutral", "warn", "danger"] = "neutral") -> object:
    return mo.callout(mo.md(text), kind=kind)


if __name__ == "__main__":
    app.run()
