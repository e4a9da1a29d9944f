-- A view, because its last day is that of the latest complete run.
{{ config(materialized=view_for_readers()) }}

with coverage as (
    {{ messages_coverage() }}
),

-- A message with a wrong time must not make this a table of centuries.
bounds as (
    select
        greatest(min(daily.day), date '2000-01-01') as first_day,
        least(greatest(max(daily.day), max(coverage.last_day)), date '2100-01-01') as last_day
    from {{ ref('thread_activity_daily') }} as daily
    cross join coverage
    having count(*) > 0 -- the engines leave out nulls here, so no message would be all days
),

days as (
    select {{ each_day('first_day', 'last_day') }} as day
    from bounds
    where first_day <= last_day
)

select
    days.day,
    {{ weekday('days.day') }} as weekday,
    cast(date_trunc('week', days.day) as date) as week,
    cast(date_trunc('month', days.day) as date) as month,
    coalesce(
        coverage.complete_since <= {{ midnight('days.day') }} and coverage.read_until >= {{ midnight('days.day + 1') }},
        false
    ) as is_complete
from days
cross join coverage
