{# What each model holds, and what it has still to do. Written in the transaction that writes the model, so the two
   cannot disagree. #}

{% macro create_bookkeeping() %}{{ return(adapter.dispatch('create_bookkeeping')()) }}{% endmacro %}
{% macro spark__create_bookkeeping() %}{% endmacro %}
{% macro default__create_bookkeeping() %}
    create schema if not exists {{ var('schema_prefix') }}staging;
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
    {#- What these models were called before: they hold the same personal data. #}
    {%- for old in ['thread_measures', 'thread_messages', 'typing_spells'] %}
    drop table if exists {{ in_staging(old) }} cascade;
    delete from {{ in_staging('built_loads') }} where mart = '{{ old }}';
    delete from {{ in_staging('days_to_build') }} where mart = '{{ old }}';
    {%- endfor %}
{% endmacro %}

{# The model holds the rows of all finished loads, and has built what it had to. #}
{% macro remember_build() %}
    {%- if model.config.materialized == 'incremental' %}
    insert into {{ in_staging('built_loads') }} (mart, load_id)
    select '{{ this.identifier }}', load_id
    from {{ in_staging('loads') }}
    where load_id not in (select load_id from {{ in_staging('built_loads') }} where mart = '{{ this.identifier }}');
    delete from {{ in_staging('days_to_build') }} where mart = '{{ this.identifier }}'
    {%- endif %}
{% endmacro %}

{# Before int_thread_messages is written: set aside the rows of the chats that it will write again, which are those with
   new rows and those that a message has left. They are deleted here, because a chat without messages any more writes none
   that would replace them. #}
{% macro set_messages_aside() %}
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
        inner join {{ ref('changed_messages') }} as landed on landed.message_id = built.message_id
    );
    delete from {{ this }} where chat_id in (select chat_id from messages_before)
    {% endif %}
{% endmacro %}

{# The chats that int_thread_messages writes again. #}
{% macro chats_of_messages() %}
    select chat_id from {{ ref('chats_to_build') }} where mart = 'int_thread_messages'
    union
    select chat_id from messages_before
{%- endmacro %}

{# What the marts of days take from a message. Not its number in the thread or the gap before it: these change when
   another message does, on whatever day that was. #}
{% macro columns_of_days() -%}
    chat_id, message_id, from_handle, message_at, day, weekday, hour, direction, side, channel, sender, is_failed,
    is_delivered, is_read, attachment_count, starts_thread, starts_turn, reply_seconds, fetched_at
{%- endmacro %}

{# After int_thread_messages is written: the days of each chat on which a message is another than before. #}
{% macro note_days_to_build() %}{{ return(adapter.dispatch('note_days_to_build')()) }}{% endmacro %}
{% macro spark__note_days_to_build() %}{% endmacro %}
{% macro default__note_days_to_build() %}
    {%- set rows_now -%}
        select {{ columns_of_days() }} from {{ this }} where chat_id in ({{ chats_of_messages() }})
    {%- endset %}
    {%- set rows_before -%}
        select {{ columns_of_days() }} from messages_before
    {%- endset %}
    {#- Built anew, but not with everything else: nothing tells which of the marts' rows have no messages any more. -#}
    {%- if not is_incremental() and not flags.FULL_REFRESH %}
    {%- for mart in ['thread_activity_daily', 'thread_activity_hours', 'number_activity_daily'] %}
    {%- if adapter.get_relation(this.database, var('schema_prefix') ~ 'marts', mart) %}
    delete from {{ var('schema_prefix') }}marts.{{ mart }};
    {%- endif %}
    {%- endfor %}
    {%- endif %}
    insert into {{ in_staging('days_to_build') }} (mart, chat_id, from_handle, day)
    select marts.mart, changed.chat_id, changed.from_handle, changed.day
    from (
        {%- if is_incremental() %}
        select chat_id, from_handle, day from ({{ rows_before }} except {{ rows_now }}) as gone
        union
        select chat_id, from_handle, day from ({{ rows_now }} except {{ rows_before }}) as come
        {%- else %}
        select distinct chat_id, from_handle, day from {{ this }}
        {%- endif %}
    ) as changed
    cross join (
        values ('int_thread_measures'), ('thread_activity_daily'), ('thread_activity_hours'),
            ('number_activity_daily'), ('group_membership'), ('int_typing_spells')
    ) as marts (mart)
{% endmacro %}
