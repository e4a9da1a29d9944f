{# Business hours: int_business_hours has the periods of each schedule. #}

{# Position of the schedule of our number in the configuration; 0 is the one of all numbers that have none of their own. #}
{% macro schedule_number(from_handle) -%}
    {%- set own = var('business_hours')[1:] -%}
    {%- if own -%}
    case {{ folded_handle(from_handle) }}
        {%- for schedule in own %}
        when {{ comment_literal(schedule.handle) }} then {{ loop.index }}
        {%- endfor %}
        else 0
    end
    {%- else -%}
    0
    {%- endif -%}
{%- endmacro %}

{# Join the period of a timestamp. #}
{% macro join_period(period, schedule_number, timestamp) -%}
    left join {{ ref('int_business_hours') }} as {{ period }}
    on {{ period }}.schedule_number = {{ schedule_number }}
    and {{ period }}.utc_day = {{ utc_day(timestamp) }}
    and {{ period }}.starts_at <= {{ timestamp }}
    and {{ period }}.ends_at > {{ timestamp }}
{%- endmacro %}

{# Business seconds between two timestamps whose periods are joined. #}
{% macro business_seconds(first_period, earlier, last_period, later) -%}
    {{ to_microsecond(business_clock(last_period, later) ~ ' - ' ~ business_clock(first_period, earlier)) }}
{%- endmacro %}

{# Business seconds of the schedule until a timestamp whose period is joined. #}
{% macro business_clock(period, timestamp) -%}
    ({{ period }}.open_seconds_before
    + case when {{ period }}.is_open then {{ seconds_between(period ~ '.starts_at', timestamp) }} else 0 end)
{%- endmacro %}

{# Round to the microsecond what additions have left in further digits. #}
{% macro to_microsecond(seconds) -%}
    cast(round(cast({{ seconds }} as decimal(38, 7)), 6) as {{ double() }})
{%- endmacro %}

{# Day of a timestamp in UTC. #}
{% macro utc_day(timestamp) %}{{ return(adapter.dispatch('utc_day')(timestamp)) }}{% endmacro %}
{% macro default__utc_day(timestamp) %}cast({{ timestamp }} at time zone 'UTC' as date){% endmacro %}
{# The session's time zone is UTC. #}
{% macro spark__utc_day(timestamp) %}cast({{ timestamp }} as date){% endmacro %}

{# Timestamp of a minute of a day in a time zone. All engines take a time that clocks skip as that much later. A time that
   they repeat is the later one; Spark takes the earlier one. #}
{% macro opening_time(day, minute, time_zone) -%}
    {{ return(adapter.dispatch('opening_time')(day, minute, time_zone)) }}
{%- endmacro %}
{% macro default__opening_time(day, minute, time_zone) -%}
    ((cast({{ day }} as timestamp) + {{ minute }} * interval '1 minute') at time zone {{ time_zone }})
{%- endmacro %}
{% macro spark__opening_time(day, minute, time_zone) -%}
    {%- set local -%}
    (cast({{ day }} as timestamp_ntz) + make_dt_interval(0, 0, {{ minute }}, 0))
    {%- endset -%}
    {%- set earlier -%}
    convert_timezone({{ time_zone }}, 'UTC', {{ local }})
    {%- endset -%}
    cast(
        case
            when convert_timezone('UTC', {{ time_zone }}, {{ earlier }} + interval '1' hour) = {{ local }}
                then {{ earlier }} + interval '1' hour
            else {{ earlier }}
        end as timestamp
    )
{%- endmacro %}

{# Position in the configuration of the first target that applies to a turn of theirs in a direct chat. #}
{% macro sla_target(starts_session, from_handle, channel) -%}
    {%- if var('sla_targets') -%}
    case
        {%- for target in var('sla_targets') %}
        when {{ '' if target.metric == 'first_response' else 'not ' }}{{ starts_session }}
            {%- if target.handles %}
            and {{ folded_handle(from_handle) }} in ({% for handle in target.handles %}{{ comment_literal(handle) }}{{ ', ' if not loop.last }}{% endfor %})
            {%- endif %}
            {%- if target.channels %}
            and {{ channel }} in ('{{ target.channels | join("', '") }}')
            {%- endif %}
            then {{ loop.index }}
        {%- endfor %}
    end
    {%- else -%}
    cast(null as integer)
    {%- endif -%}
{%- endmacro %}

{# Number of whole days' worth in business seconds. #}
{% macro open_day(business_seconds) %}cast(floor(({{ business_seconds }}) / 86400) as integer){% endmacro %}

{# Timestamp some seconds later, to the microsecond. #}
{% macro add_seconds(timestamp, seconds) %}{{ return(adapter.dispatch('add_seconds')(timestamp, seconds)) }}{% endmacro %}
{% macro default__add_seconds(timestamp, seconds) -%}
    ({{ timestamp }} + {{ to_microsecond(seconds) }} * interval '1 second')
{%- endmacro %}
{% macro duckdb__add_seconds(timestamp, seconds) -%}
    ({{ timestamp }} + to_microseconds(cast(round({{ as_double(seconds) }} * 1000000) as bigint)))
{%- endmacro %}
{% macro spark__add_seconds(timestamp, seconds) -%}
    timestamp_micros(unix_micros({{ timestamp }}) + cast(round({{ as_double(seconds) }} * 1000000) as bigint))
{%- endmacro %}
