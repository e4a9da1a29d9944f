-- A view over sla_events: a target that is running today may be missed tomorrow.
{{ config(materialized=view_for_readers()) }}

with counted as (
    -- A number, a network and a metric have a single target, so the row has its clock and length too.
    select
        from_handle,
        day,
        channel,
        metric,
        clock,
        target_seconds,
        count(*) as targets_total,
        count(case when state = 'met' then 1 end) as targets_met,
        count(case when state = 'breached' then 1 end) as targets_breached,
        count(case when state = 'running' then 1 end) as targets_running,
        count(case when state = 'dropped' then 1 end) as targets_dropped
    from {{ ref('sla_events') }}
    group by from_handle, day, channel, metric, clock, target_seconds
)

select
    *,
    {{ as_double('targets_met') }} / nullif(targets_met + targets_breached, 0) as met_rate
from counted
