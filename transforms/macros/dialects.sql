{# Differences between the engines. All other SQL in this project runs on DuckDB, PostgreSQL and Spark. #}

{# Seconds between two timestamps, to the microsecond. #}
{% macro seconds_between(earlier, later) %}{{ return(adapter.dispatch('seconds_between')(earlier, later)) }}{% endmacro %}

{% macro default__seconds_between(earlier, later) -%}
    cast(extract(epoch from {{ later }} - {{ earlier }}) as double precision)
{%- endmacro %}

{% macro duckdb__seconds_between(earlier, later) -%}
    (cast(epoch_us({{ later }}) - epoch_us({{ earlier }}) as double) / 1000000)
{%- endmacro %}

{% macro spark__seconds_between(earlier, later) -%}
    (cast(unix_micros({{ later }}) - unix_micros({{ earlier }}) as double) / 1000000)
{%- endmacro %}

{# Whether a message begins a session: its side speaks, and nobody has spoken for `session_gap_hours`. #}
{% macro starts_session(message) -%}
    ({{ message }}.side is not null and coalesce(
        {{ seconds_between(message ~ '.silent_since', message ~ '.message_at') }} >= {{ var('session_gap_hours') }} * 3600, true
    ))
{%- endmacro %}

{# Interpolated percentile, ignoring nulls. Rounded to the millisecond, because the engines differ in the last bit. #}
{% macro percentile(share, seconds) -%}
    cast(round(cast(
        percentile_cont({{ share }}) within group (order by {{ seconds }})
        as decimal(38, 7)), 3) as {{ double() }})
{%- endmacro %}

{% macro double() %}{{ return(adapter.dispatch('double')()) }}{% endmacro %}
{% macro default__double() %}double precision{% endmacro %}
{% macro spark__double() %}double{% endmacro %}

{% macro as_double(number) %}cast({{ number }} as {{ double() }}){% endmacro %}

{# 1970-01-01 as a timestamp. #}
{% macro epoch() %}{{ return(adapter.dispatch('epoch')()) }}{% endmacro %}
{% macro default__epoch() %}timestamptz '1970-01-01 00:00:00+00'{% endmacro %}
{% macro spark__epoch() %}timestamp '1970-01-01 00:00:00Z'{% endmacro %}

{# Day of the week of a local time, from 1 (Monday) to 7 (Sunday). #}
{% macro weekday(local_at) %}{{ return(adapter.dispatch('weekday')(local_at)) }}{% endmacro %}
{% macro default__weekday(local_at) %}cast(extract(isodow from {{ local_at }}) as integer){% endmacro %}
{% macro spark__weekday(local_at) %}cast(extract(dayofweek_iso from {{ local_at }}) as integer){% endmacro %}

{# Number of months from one first day of a month to another. #}
{% macro months_between(earlier, later) -%}
    cast(
        12 * (extract(year from {{ later }}) - extract(year from {{ earlier }}))
        + extract(month from {{ later }}) - extract(month from {{ earlier }})
        as integer
    )
{%- endmacro %}

{# Sort text by its bytes, regardless of the database's locale. #}
{% macro by_bytes(text) %}{{ return(adapter.dispatch('by_bytes')(text)) }}{% endmacro %}
{% macro default__by_bytes(text) %}{{ text }} collate "C"{% endmacro %}
{% macro duckdb__by_bytes(text) %}{{ text }}{% endmacro %}
{% macro spark__by_bytes(text) %}{{ text }}{% endmacro %}

{# A table that the job loads, or an empty one with these columns if no load has created it yet. #}
{% macro loaded_table(table, columns) -%}
    {%- set relation = source('msgbubbles', table) -%}
    {%- if not execute or load_relation(relation) -%}
    {{ relation }}
    {%- else -%}
    (
        select
            {%- for name, type in columns.items() %}
            cast(null as {{ engine_type(type) }}) as {{ name }}{{ ',' if not loop.last }}
            {%- endfor %}
        where false
    ) as {{ table }}
    {%- endif -%}
{%- endmacro %}

{% macro engine_type(type) %}{{ return(adapter.dispatch('engine_type')(type)) }}{% endmacro %}
{% macro default__engine_type(type) %}{{ type }}{% endmacro %}
{% macro spark__engine_type(type) -%}
    {{ {'varchar': 'string', 'json': 'string', 'timestamptz': 'timestamp'}.get(type, type) }}
{%- endmacro %}

{# Convert a timestamp to the account's time zone. #}
{% macro local_time(timestamp) %}{{ return(adapter.dispatch('local_time')(timestamp)) }}{% endmacro %}
{% macro default__local_time(timestamp) %}({{ timestamp }} at time zone '{{ var("time_zone") }}'){% endmacro %}
{# The session's time zone is UTC. #}
{% macro spark__local_time(timestamp) -%}
    convert_timezone('UTC', '{{ var("time_zone") }}', cast({{ timestamp }} as timestamp_ntz))
{%- endmacro %}

{# Timestamp at which a day begins in the account's time zone. #}
{% macro midnight(day) %}{{ return(adapter.dispatch('midnight')(day)) }}{% endmacro %}
{% macro default__midnight(day) %}(cast({{ day }} as timestamp) at time zone '{{ var("time_zone") }}'){% endmacro %}
{% macro spark__midnight(day) -%}
    cast(convert_timezone('{{ var("time_zone") }}', 'UTC', cast({{ day }} as timestamp_ntz)) as timestamp)
{%- endmacro %}

{# A row for each day from the first to the last, in a select list. #}
{% macro each_day(first, last) %}{{ return(adapter.dispatch('each_day')(first, last)) }}{% endmacro %}
{% macro default__each_day(first, last) -%}
    cast(generate_series(cast({{ first }} as timestamp), cast({{ last }} as timestamp), interval '1 day') as date)
{%- endmacro %}
{% macro duckdb__each_day(first, last) -%}
    cast(unnest(
        generate_series(cast({{ first }} as timestamp), cast({{ last }} as timestamp), interval '1 day')
    ) as date)
{%- endmacro %}
{% macro spark__each_day(first, last) %}explode(sequence({{ first }}, {{ last }})){% endmacro %}

{# Code of an error of the API, which is JSON. #}
{% macro error_code(error) %}{{ return(adapter.dispatch('error_code')(error)) }}{% endmacro %}
{% macro default__error_code(error) -%}
    coalesce(cast({{ error }} as json) ->> 'code', cast({{ error }} as json) ->> 'error')
{%- endmacro %}
{% macro duckdb__error_code(error) -%}
    coalesce(json_extract_string({{ error }}, '$.code'), json_extract_string({{ error }}, '$.error'))
{%- endmacro %}
{% macro spark__error_code(error) -%}
    coalesce(get_json_object({{ error }}, '$.code'), get_json_object({{ error }}, '$.error'))
{%- endmacro %}

{# Spark rebuilds everything, because Parquet files cannot be changed in place, and needs no deletes. #}
{% macro delete_where(condition) %}{{ return(adapter.dispatch('delete_where')(condition)) }}{% endmacro %}
{% macro default__delete_where(condition) %}delete from {{ this }} where {{ condition }}{% endmacro %}
{% macro spark__delete_where(condition) %}{% endmacro %}

{# A Spark view ends with its session, so readers get a table there. #}
{% macro view_for_readers() %}{{ return('table' if target.type == 'spark' else 'view') }}{% endmacro %}

{# Normalize a handle so that all its spellings compare equal, for joins and groups, not for display. Same rules as
   `fold_handle` in pipelines/msgbubbles/handles.py. Pseudonyms are left unchanged. #}
{% macro folded_handle(handle) -%}
    {%- set number = "translate(" ~ handle ~ ", ' -().', '')" -%}
    case
        when {{ handle }} like '%@%' then lower({{ handle }})
        when {{ handle }} not like '+%' then lower({{ handle }})
        when {{ number }} like '+549{{ '_' * 10 }}' then concat('+54', substring({{ number }}, 5))
        when {{ number }} like '+521{{ '_' * 10 }}' then concat('+52', substring({{ number }}, 5))
        when {{ number }} like '+55__9{{ '_' * 8 }}' and substring({{ number }}, 7, 1) in ('6', '7', '8', '9')
            then concat(substring({{ number }}, 1, 5), substring({{ number }}, 7))
        when {{ number }} like '+22901{{ '_' * 8 }}' then concat('+229', substring({{ number }}, 7))
        else {{ number }}
    end
{%- endmacro %}

{# Select the folded handles of our numbers, including those that the account has given up. #}
{% macro own_handles() -%}
    select {{ folded_handle('handle') }} from {{ ref('stg_numbers') }}
    union
    select {{ folded_handle('from_handle') }} from {{ ref('stg_chats') }} where from_handle is not null
{%- endmacro %}
