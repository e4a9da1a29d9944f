-- Every schedule divides time into periods in which either all seconds count or none. A period has a row for each day (in
-- UTC) that it touches, so that the period of a timestamp is found by an equality join.
{{ config(materialized='table') }}

with bounds as (
    -- No network is as old as 2000. Deadlines may be later than the last message.
    select
        greatest({{ utc_day('min(message_at)') }}, date '2000-01-01') - 2 as first_day,
        least({{ utc_day('max(message_at)') }}, date '2100-01-01') + 400 as last_day
    from {{ ref('int_thread_messages') }}
    having count(*) > 0 -- the engines leave out nulls here, so no message would be all days
),

days as (
    select day, {{ weekday('day') }} as weekday
    from (select {{ each_day('first_day', 'last_day') }} as day from bounds where first_day <= last_day) as days
),

changes (schedule_number, time_zone, weekday, minute, is_open) as (
    values
    {%- for schedule in var('business_hours') %}
        {%- set outer = loop %}
        {%- for weekday, minute, is_open in schedule.changes %}
        ({{ outer.index0 }}, '{{ schedule.time_zone }}', {{ weekday }}, {{ minute }}, {{ is_open | lower }})
        {{- ',' if not (loop.last and outer.last) }}
        {%- endfor %}
    {%- endfor %}
),

holidays (schedule_number, day) as (
    values
    {%- for schedule in var('business_hours') %}
        {%- set outer = loop %}
        {%- for day in schedule.holidays %}
        ({{ outer.index0 }}, date '{{ day }}'),
        {%- endfor %}
    {%- endfor %}
        (-1, cast(null as date))
),

starts as (
    select
        changes.schedule_number,
        days.day,
        changes.minute,
        changes.is_open and holidays.day is null as is_open,
        -- A time that clocks skip is moved forward, so it may come after the next change of the same day.
        max({{ opening_time('days.day', 'changes.minute', 'changes.time_zone') }}) over (
            partition by changes.schedule_number order by days.day, changes.minute rows unbounded preceding
        ) as starts_at
    from days
    inner join changes on changes.weekday = days.weekday
    left join holidays on holidays.schedule_number = changes.schedule_number and holidays.day = days.day
),

periods as (
    select
        schedule_number,
        day,
        minute,
        is_open,
        starts_at,
        lead(starts_at) over (partition by schedule_number order by day, minute) as ends_at
    from starts
),

counted as (
    select
        *,
        case when is_open then {{ seconds_between('starts_at', 'ends_at') }} else 0 end as open_seconds
    from periods
    where starts_at < ends_at
),

summed as (
    select
        *,
        sum(open_seconds) over (
            partition by schedule_number order by starts_at rows unbounded preceding
        ) - open_seconds as open_seconds_before
    from counted
)

select
    summed.schedule_number,
    {{ utc_day('summed.starts_at') }} + offsets.days as utc_day,
    summed.starts_at,
    summed.ends_at,
    summed.is_open,
    summed.open_seconds,
    summed.open_seconds_before
from summed
inner join (values (0), (1), (2)) as offsets (days)
    on {{ utc_day('summed.starts_at') }} + offsets.days <= {{ utc_day('summed.ends_at') }}
