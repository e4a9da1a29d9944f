{# Which loads each model contains, and which rows it has to rebuild. Written in the transaction that writes the model,
   so the two cannot disagree. #}

{% macro create_bookkeeping() %}{{ return(adapter.dispatch('create_bookkeeping')()) }}{% endmacro %}
{% macro spark__create_bookkeeping() %}{% endmacro %}
{% macro default__create_bookkeeping() %}
    {%- set staging = var('schema_prefix') ~ 'staging' %}
    {%- if target.type == 'postgres' %}
    {#- It refuses the other statement to a role that may not create schemas, even if this one exists. #}
    do $schema$ begin
        if to_regnamespace('{{ staging }}') is null then create schema {{ staging }}; end if;
    end $schema$;
    {%- else %}
    create schema if not exists {{ staging }};
    {%- endif %}
    create table if not exists {{ in_staging('built_loads') }} (
        mart varchar(200) not null,
        load_id varchar(200) not null
    );
    create table if not exists {{ in_staging('days_to_build') }} (
        mart varchar(200) not null,
        chat_id varchar not null,
        from_handle varchar,
        day date not null
    );
    {#- Tables under the models' former names hold the same personal data. #}
    {%- for old in ['thread_measures', 'thread_messages', 'typing_spells'] %}
    drop table if exists {{ in_staging(old) }} cascade;
    delete from {{ in_staging('built_loads') }} where mart = '{{ old }}';
    delete from {{ in_staging('days_to_build') }} where mart = '{{ old }}';
    {%- endfor %}
{% endmacro %}

{# Record that the model contains all finished loads and has rebuilt its rows. #}
{% macro record_build() %}
    {%- if model.config.materialized == 'incremental' %}
    insert into {{ in_staging('built_loads') }} (mart, load_id)
    select '{{ this.identifier }}', load_id
    from {{ in_staging('loads') }}
    where load_id not in (select load_id from {{ in_staging('built_loads') }} where mart = '{{ this.identifier }}');
    delete from {{ in_staging('days_to_build') }} where mart = '{{ this.identifier }}'
    {%- endif %}
{% endmacro %}

{# Before int_thread_messages is written, copy the rows of the chats that it will rebuild: chats with new rows, and chats
   that a message has left. Delete them here, because a chat that no longer has messages writes no rows that would replace
   them. #}
{% macro copy_messages_before() %}
    {% if is_incremental() %}
    drop table if exists messages_before;
    create temporary table messages_before as
    select *
    from {{ this }}
    where chat_id in (
        select chat_id from {{ ref('chats_to_build') }} where mart = 'int_thread_messages'
        union
        select built.chat_id
        from {{ this }} as built
        inner join {{ ref('changed_messages') }} as changed on changed.message_id = built.message_id
    );
    delete from {{ this }} where chat_id in (select chat_id from messages_before)
    {% endif %}
{% endmacro %}

{# Select the chats that int_thread_messages rebuilds. #}
{% macro select_chats_to_rebuild() %}
    select chat_id from {{ ref('chats_to_build') }} where mart = 'int_thread_messages'
    union
    select chat_id from messages_before
{%- endmacro %}

{# List the columns of int_thread_messages that daily marts depend on. place_in_thread and gap_seconds are not among them:
   they also change when a message of another day does. #}
{% macro daily_columns() -%}
    chat_id, message_id, from_handle, message_at, day, weekday, hour, direction, side, channel, sender, is_failed,
    is_delivered, is_read, attachment_count, starts_thread, starts_turn, reply_seconds, fetched_at
{%- endmacro %}

{# After int_thread_messages is written, record the days of each chat on which a message differs from before. #}
{% macro record_days_to_build() %}{{ return(adapter.dispatch('record_days_to_build')()) }}{% endmacro %}
{% macro spark__record_days_to_build() %}{% endmacro %}
{% macro default__record_days_to_build() %}
    {%- set rows_now -%}
        select {{ daily_columns() }} from {{ this }} where chat_id in ({{ select_chats_to_rebuild() }})
    {%- endset %}
    {%- set rows_before -%}
        select {{ daily_columns() }} from messages_before
    {%- endset %}
    {#- Only this model is rebuilt from scratch: the daily marts may have rows whose messages are gone. -#}
    {%- if not is_incremental() and not flags.FULL_REFRESH %}
    {%- for mart in ['thread_activity_daily', 'thread_activity_hours', 'number_activity_daily', 'thread_turns',
        'thread_sessions', 'delivery_daily'] %}
    {%- if adapter.get_relation(this.database, in_marts(), mart) %}
    delete from {{ in_marts() }}.{{ mart }};
    {%- endif %}
    {%- endfor %}
    {%- endif %}
    insert into {{ in_staging('days_to_build') }} (mart, chat_id, from_handle, day)
    select marts.mart, changed.chat_id, changed.from_handle, changed.day
    from (
        {%- if is_incremental() %}
        select chat_id, from_handle, day from ({{ rows_before }} except {{ rows_now }}) as removed
        union
        select chat_id, from_handle, day from ({{ rows_now }} except {{ rows_before }}) as added
        {%- else %}
        select distinct chat_id, from_handle, day from {{ this }}
        {%- endif %}
    ) as changed
    cross join (
        values ('int_thread_measures'), ('thread_activity_daily'), ('thread_activity_hours'),
            ('number_activity_daily'), ('group_membership'), ('int_typing_spells'), ('thread_turns'),
            ('thread_sessions'), ('delivery_daily')
    ) as marts (mart)
{% endmacro %}
