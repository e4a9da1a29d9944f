-- A view, because every day that is read adds a row for each number. Turns that end on the day on which they began, as
-- most do, are in no backlog. The others are counted first by the days on which they began and ended, because most share
-- both.
{{ config(materialized=view_for_readers(), tags='tested_once_a_day') }}

{%- set answered_day, deleted_day = 'turns.answered_day', 'cast(' ~ local_time('chats.deleted_at') ~ ' as date)' %}
{%- if var('close_after_days') %}
{#- The chat closes after silence, until somebody writes. #}
{%- set closed_day = 'cast(' ~ local_time(add_seconds('turns.ended_at', var('close_after_days') * 86400)) ~ ' as date)' %}
{%- set answered_day, deleted_day = 'least(' ~ answered_day ~ ', ' ~ closed_day ~ ')', 'least(' ~ deleted_day ~ ', ' ~ closed_day ~ ')' %}
{%- endif %}

with turns as (
    select from_handle, side, is_group, day as first_day, {{ answered_day }} as end_day, count(*) as turn_count
    from {{ ref('thread_turns') }} as turns
    where from_handle is not null and answered_day > day
    group by from_handle, side, is_group, day, {{ answered_day }}

    union all

    select
        turns.from_handle,
        turns.side,
        turns.is_group,
        turns.day,
        {{ deleted_day }},
        1
    from {{ ref('thread_turns') }} as turns
    inner join {{ ref('stg_chats') }} as chats on chats.chat_id = turns.chat_id
    where turns.from_handle is not null and turns.answered_day is null
),

-- A turn that has waited for some days enters the backlog of that age, and leaves it when it ends.
waits as (
    select turns.*, ages.days
    from turns
    inner join (values (0), (1), (3), (7)) as ages (days)
        on turns.end_day is null or turns.end_day > turns.first_day + ages.days
    where not turns.is_group or ages.days = 0
),

changes as (
    select from_handle, side, is_group, days, first_day + days as day, turn_count as change
    from waits
    union all
    select from_handle, side, is_group, days, end_day, -turn_count
    from waits
    where end_day is not null
),

changes_of_day as (
    select
        from_handle,
        day,
        sum(case when side = 'them' and not is_group and days = 0 then change else 0 end) as waiting_on_us,
        sum(case when side = 'them' and not is_group and days = 1 then change else 0 end) as waiting_on_us_1_day,
        sum(case when side = 'them' and not is_group and days = 3 then change else 0 end) as waiting_on_us_3_days,
        sum(case when side = 'them' and not is_group and days = 7 then change else 0 end) as waiting_on_us_7_days,
        sum(case when side = 'us' and not is_group and days = 0 then change else 0 end) as waiting_on_them,
        sum(case when side = 'us' and not is_group and days = 7 then change else 0 end) as waiting_on_them_7_days,
        sum(case when side = 'them' and is_group then change else 0 end) as groups_waiting_on_us
    from changes
    group by from_handle, day
),

days as (
    select numbers.from_handle, calendar.day
    from (
        select from_handle, min(day) as first_day
        from {{ ref('thread_turns') }}
        where from_handle is not null
        group by from_handle
    ) as numbers
    inner join {{ ref('calendar') }} as calendar on calendar.day >= numbers.first_day
)

select
    days.from_handle,
    days.day,
    cast(sum(coalesce(changes_of_day.waiting_on_us, 0)) over number as bigint) as waiting_on_us,
    cast(sum(coalesce(changes_of_day.waiting_on_us_1_day, 0)) over number as bigint) as waiting_on_us_1_day,
    cast(sum(coalesce(changes_of_day.waiting_on_us_3_days, 0)) over number as bigint) as waiting_on_us_3_days,
    cast(sum(coalesce(changes_of_day.waiting_on_us_7_days, 0)) over number as bigint) as waiting_on_us_7_days,
    cast(sum(coalesce(changes_of_day.waiting_on_them, 0)) over number as bigint) as waiting_on_them,
    cast(sum(coalesce(changes_of_day.waiting_on_them_7_days, 0)) over number as bigint) as waiting_on_them_7_days,
    cast(sum(coalesce(changes_of_day.groups_waiting_on_us, 0)) over number as bigint) as groups_waiting_on_us
from days
left join changes_of_day on changes_of_day.from_handle = days.from_handle and changes_of_day.day = days.day
window number as (partition by days.from_handle order by days.day rows unbounded preceding)
