{# Where the engines differ. Everything else in this project is SQL that DuckDB, PostgreSQL and Spark understand. #}

{# Seconds between two instants, to the microsecond. #}
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

{# The value that the given share of all values is at or below, interpolated, to the millisecond: the databases
   interpolate with other roundings in the last bit. Null values do not count. #}
{% macro percentile_of(share, seconds) -%}
    cast(round(cast(
        percentile_cont({{ share }}) within group (order by {{ seconds }})
        as decimal(38, 7)), 3) as {{ double() }})
{%- endmacro %}

{% macro double() %}{{ return(adapter.dispatch('double')()) }}{% endmacro %}
{% macro default__double() %}double precision{% endmacro %}
{% macro spark__double() %}double{% endmacro %}

{% macro as_double(number) %}cast({{ number }} as {{ double() }}){% endmacro %}

{# 1970-01-01, as an instant. #}
{% macro epoch() %}{{ return(adapter.dispatch('epoch')()) }}{% endmacro %}
{% macro default__epoch() %}timestamptz '1970-01-01 00:00:00+00'{% endmacro %}
{% macro spark__epoch() %}timestamp '1970-01-01 00:00:00Z'{% endmacro %}

{# Of a local time, from 1 for Monday to 7. #}
{% macro weekday_of(local_at) %}{{ return(adapter.dispatch('weekday_of')(local_at)) }}{% endmacro %}
{% macro default__weekday_of(local_at) %}cast(extract(isodow from {{ local_at }}) as integer){% endmacro %}
{% macro spark__weekday_of(local_at) %}cast(extract(dayofweek_iso from {{ local_at }}) as integer){% endmacro %}

{# Text in the order of its bytes, whatever the database's language is. #}
{% macro by_bytes(text) %}{{ return(adapter.dispatch('by_bytes')(text)) }}{% endmacro %}
{% macro default__by_bytes(text) %}{{ text }} collate "C"{% endmacro %}
{% macro duckdb__by_bytes(text) %}{{ text }}{% endmacro %}
{% macro spark__by_bytes(text) %}{{ text }}{% endmacro %}

{# A table that the job lands; an empty one, with these columns, where a job of an older version has not made it. #}
{% macro landed(table, columns) -%}
    {%- set relation = source('msgbubbles', table) -%}
    {%- if not execute or load_relation(relation) -%}
    {{ relation }}
    {%- else -%}
    (
        select
            {%- for name, type in columns.items() %}
            cast(null as {{ type_named(type) }}) as {{ name }}{{ ',' if not loop.last }}
            {%- endfor %}
        where false
    ) as {{ table }}
    {%- endif -%}
{%- endmacro %}

{% macro type_named(type) %}{{ return(adapter.dispatch('type_named')(type)) }}{% endmacro %}
{% macro default__type_named(type) %}{{ type }}{% endmacro %}
{% macro spark__type_named(type) -%}
    {{ {'varchar': 'string', 'json': 'string', 'timestamptz': 'timestamp'}.get(type, type) }}
{%- endmacro %}

{# In the account's time zone. #}
{% macro local_time(instant) %}{{ return(adapter.dispatch('local_time')(instant)) }}{% endmacro %}
{% macro default__local_time(instant) %}({{ instant }} at time zone '{{ var("time_zone") }}'){% endmacro %}
{# The session's own time zone is UTC. #}
{% macro spark__local_time(instant) -%}
    convert_timezone('UTC', '{{ var("time_zone") }}', cast({{ instant }} as timestamp_ntz))
{%- endmacro %}

{# The instant at which a day of the account's time zone begins. #}
{% macro midnight(day) %}{{ return(adapter.dispatch('midnight')(day)) }}{% endmacro %}
{% macro default__midnight(day) %}(cast({{ day }} as timestamp) at time zone '{{ var("time_zone") }}'){% endmacro %}
{% macro spark__midnight(day) -%}
    cast(convert_timezone('{{ var("time_zone") }}', 'UTC', cast({{ day }} as timestamp_ntz)) as timestamp)
{%- endmacro %}

{# Spark builds everything anew, because its Parquet files cannot be changed: what increments need is not done there. #}
{% macro delete_where(condition) %}{{ return(adapter.dispatch('delete_where')(condition)) }}{% endmacro %}
{% macro default__delete_where(condition) %}delete from {{ this }} where {{ condition }}{% endmacro %}
{% macro spark__delete_where(condition) %}{% endmacro %}

{# A view of Spark's ends with its session, and others could not read it. #}
{% macro view_for_readers() %}{{ return('table' if target.type == 'spark' else 'view') }}{% endmacro %}

{# A form of a handle that is equal for all spellings of one person's: for joins and groups, not for display. It has the
   rules of `fold_handle` in pipelines/msgbubbles/handles.py. A pseudonym stays. #}
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
