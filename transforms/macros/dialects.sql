{# Where the databases differ. Everything else in this project is SQL that both DuckDB and PostgreSQL understand. #}

{# Seconds between two instants, to the microsecond. #}
{% macro seconds_between(earlier, later) %}{{ return(adapter.dispatch('seconds_between')(earlier, later)) }}{% endmacro %}

{% macro default__seconds_between(earlier, later) -%}
    cast(extract(epoch from {{ later }} - {{ earlier }}) as double precision)
{%- endmacro %}

{% macro duckdb__seconds_between(earlier, later) -%}
    (cast(epoch_us({{ later }}) - epoch_us({{ earlier }}) as double) / 1000000)
{%- endmacro %}

{# The value that the given share of all values is at or below, interpolated, to the millisecond: the databases
   interpolate with other roundings in the last bit. Null values do not count. #}
{% macro percentile_of(share, seconds) -%}
    cast(round(cast(
        percentile_cont({{ share }}) within group (order by {{ seconds }})
        as decimal(38, 7)), 3) as double precision)
{%- endmacro %}

{# Text in the order of its bytes, whatever the database's language is. #}
{% macro by_bytes(text) %}{{ return(adapter.dispatch('by_bytes')(text)) }}{% endmacro %}
{% macro default__by_bytes(text) %}{{ text }} collate "C"{% endmacro %}
{% macro duckdb__by_bytes(text) %}{{ text }}{% endmacro %}

{# A table that the job lands; an empty one, with these columns, where a job of an older version has not made it. #}
{% macro landed(table, columns) -%}
    {%- set relation = source('msgbubbles', table) -%}
    {%- if not execute or load_relation(relation) -%}
    {{ relation }}
    {%- else -%}
    (
        select
            {%- for name, type in columns.items() %}
            cast(null as {{ type }}) as {{ name }}{{ ',' if not loop.last }}
            {%- endfor %}
        where false
    ) as {{ table }}
    {%- endif -%}
{%- endmacro %}

{# In the account's time zone. #}
{% macro local_time(instant) %}({{ instant }} at time zone '{{ var("time_zone") }}'){% endmacro %}

{# The instant at which a day of the account's time zone begins. #}
{% macro midnight(day) %}(cast({{ day }} as timestamp) at time zone '{{ var("time_zone") }}'){% endmacro %}
