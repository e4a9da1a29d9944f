{# Which loads each model contains, and which rows it has to rebuild. Written in the transaction that writes the model,
   so the two cannot disagree. #}

{% macro create_bookkeeping() %}{{ return(adapter.dispatch('create_bookkeeping')()) }}{% endmacro %}
{% macro spark__create_bookkeeping() %}{% endmacro %}
{% macro default__create_bookkeeping() %}
    {%- set staging = var('schema_prefix') ~ var('staging_schema') %}
    {%- if target.type == 'postgres' %}
    {#- It refuses the other statement to a role that may not create schemas, even if this one exists. #}
    do $schema$ begin
        if to_regnamespace('{{ staging }}') is null then create schema {{ staging }}; end if;
    end $schema$;
    {%- else %}
    create schema if not exists {{ staging }};
    {%- endif %}
    {#- A build of the whole project from scratch needs none of their rows; another release may have other columns. #}
    {%- if flags.FULL_REFRESH and not invocation_args_dict.get('select') %}
        {%- for table in ['built_loads', 'days_to_build', 'thread_chats', 'thread_tails'] %}
    drop table if exists {{ in_staging(table) }}{{ ' cascade' if target.type == 'postgres' }};
        {%- endfor %}
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
    create table if not exists {{ in_staging('thread_chats') }} (
        chat_id varchar not null,
        from_handle varchar,
        remote_handle varchar,
        is_group boolean
    );
    create table if not exists {{ in_staging('thread_tails') }} (
        chat_id varchar not null,
        first_day date not null,
        since timestamptz not null,
        place_before bigint not null,
        message_before_at timestamptz,
        side_before varchar(4),
        turn_before_at timestamptz,
        spoke_before_at timestamptz,
        turns_before bigint not null,
        sessions_before bigint not null
    );
    {#- Tables under the models' former names hold the same personal data. #}
    {%- for old in ['thread_measures', 'thread_messages', 'typing_spells'] %}
    drop table if exists {{ in_staging(old) }}{{ ' cascade' if target.type == 'postgres' }};
    delete from {{ in_staging('built_loads') }} where mart = '{{ old }}';
    delete from {{ in_staging('days_to_build') }} where mart = '{{ old }}';
    {%- endfor %}
{% endmacro %}

{# The models that find what to rebuild by the loads that they do not contain. One that is missing here is never updated. #}
{% macro models_by_load() -%}
    {{ return(['int_thread_messages', 'group_membership', 'chat_title_history', 'int_typing_spells', 'int_contact_replies']) }}
{%- endmacro %}

{# Select the loads that this model did not contain when the run began. #}
{% macro new_loads() -%}
    select load_id from {{ ref('unbuilt_loads') }} where mart = '{{ this.identifier }}'
{%- endmacro %}

{# Remove the finished loads that all models contain, but not the newest: otherwise each run would cost more than the one
   before. dlt finds the state of a pipeline by its load. #}
{% macro remove_built_loads() %}{{ return(adapter.dispatch('remove_built_loads')()) }}{% endmacro %}
{% macro spark__remove_built_loads() %}{% endmacro %}
{% macro default__remove_built_loads() %}
    {%- set loads = source('msgbubbles', '_dlt_loads') %}
    {%- set states = loads.incorporate(path={'identifier': '_dlt_pipeline_state'}) %}
    delete from {{ loads }}
    where
        status = 0
        and (select count(*) from {{ loads }}) > 2000
        and load_id not in (select load_id from {{ loads }} order by load_id desc limit 1000)
        and load_id in (
            select load_id from {{ in_staging('built_loads') }}
            where mart in ('{{ models_by_load() | join("', '") }}')
            group by load_id
            having count(distinct mart) = {{ models_by_load() | length }}
        )
        {%- if load_relation(states) %}
        and load_id not in (select _dlt_load_id from {{ states }})
        {%- endif %};
    delete from {{ in_staging('built_loads') }} where load_id not in (select load_id from {{ loads }})
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

{# Before int_thread_messages is written, decide from which day on it rebuilds each chat: from the earliest day with a
   changed message, now or before, and from the beginning if the chat itself changed. Copy the rows from then on, the
   tails, and delete them. What the days before them pass on to the first rows of a tail goes with it. Those days are in
   int_thread_days, unless it has missed a run: then the tail begins with the first day that it has still to build. #}
{% macro cut_tails() %}{{ return(adapter.dispatch('cut_tails')()) }}{% endmacro %}
{% macro spark__cut_tails() %}{% endmacro %}
{% macro default__cut_tails() %}
    {%- set changed_chats -%}
        select chat_id from {{ ref('chats_to_build') }} where mart = 'int_thread_messages'
    {%- endset %}
    {%- set days = in_staging('int_thread_days') %}
    {%- if not adapter.get_relation(this.database, this.schema, 'int_thread_days') %}
        {%- set days = '(' ~ sum_days(this) ~ ')' %}
    {%- endif %}
    {#- TRUNCATE leaves no bytes of erased people on a server. #}
    {%- if is_incremental() %}
    delete from {{ in_staging('thread_chats') }} where chat_id in ({{ changed_chats }});
    {%- else %}
    truncate {{ in_staging('thread_chats') }};
    {%- endif %}
    insert into {{ in_staging('thread_chats') }} (chat_id, from_handle, remote_handle, is_group)
    select chat_id, from_handle, remote_handle, is_group
    from {{ ref('stg_chats') }}
    {%- if is_incremental() %} where chat_id in ({{ changed_chats }}){% endif %};
    delete from {{ in_staging('thread_tails') }}
    {%- if is_incremental() %};
    insert into {{ in_staging('thread_tails') }}
    with changes as (
        select chat_id, min(first_day) as first_day
        from (
            select chat_id, cast({{ local_time('message_at') }} as date) as first_day
            from {{ ref('changed_messages') }}
            where counts_in_thread
            union all
            select built.chat_id, built.day
            from {{ this }} as built
            inner join {{ ref('changed_messages') }} as changed on changed.message_id = built.message_id
            union all
            select chat_id, day from {{ in_staging('days_to_build') }} where mart = 'int_thread_days'
            union all
            select chat_id, date '0001-01-05' from ({{ changed_chats }}) as changed_chats
        ) as positions
        group by chat_id
    )
    select
        changes.chat_id,
        changes.first_day,
        -- Days begin at most a day apart: this only skips messages that are older.
        {{ midnight('changes.first_day - 1') }} as since,
        coalesce(max(before.place_in_thread), 0) as place_before,
        max(before.latest_message_at) as message_before_at,
        -- Sides alternate, so the last turn is that of the side that began if its number is odd.
        case
            when max(before.turn_number) % 2 = 1 then max(before.first_side)
            when max(before.first_side) = 'us' then 'them'
            when max(before.first_side) = 'them' then 'us'
        end as side_before,
        max(before.turn_began_at) as turn_before_at,
        max(before.spoke_at) as spoke_before_at,
        coalesce(max(before.turn_number), 0) as turns_before,
        coalesce(max(before.session_number), 0) as sessions_before
    from changes
    left join {{ days }} as before on before.chat_id = changes.chat_id and before.day < changes.first_day
    group by changes.chat_id, changes.first_day;

    drop table if exists messages_before;
    create temporary table messages_before as
    select built.*
    from {{ this }} as built
    inner join {{ in_staging('thread_tails') }} as tails
        on tails.chat_id = built.chat_id and built.day >= tails.first_day;
    delete from {{ this }} as built
    using {{ in_staging('thread_tails') }} as tails
    where tails.chat_id = built.chat_id and built.day >= tails.first_day
    {%- endif %}
{% endmacro %}

{# Add up the messages of each chat on each day, by direction, channel and sender; of all days, or of those from `since` of
   `tails` on. Of a number that only grows in a chat, such as that of a turn, the last of these messages has the highest. #}
{% macro sum_days(messages, tails=none) -%}
    select
        messages.chat_id,
        messages.day,
        messages.direction,
        messages.channel,
        messages.sender,
        count(*) as messages_total,
        count(case when messages.is_failed then 1 end) as messages_failed,
        count(case when messages.is_delivered then 1 end) as messages_delivered,
        count(case when messages.is_read then 1 end) as messages_read,
        cast(sum(messages.attachment_count) as bigint) as attachments_total,
        min(messages.message_at) as first_message_at,
        max(messages.message_at) as latest_message_at,
        max(messages.gap_seconds) as longest_gap_seconds,
        max(messages.place_in_thread) as place_in_thread,
        max(case when messages.side is not null then messages.message_at end) as spoke_at,
        max(messages.turn_number) as turn_number,
        max(case when messages.starts_turn then messages.message_at end) as turn_began_at,
        max(messages.session_number) as session_number,
        max(case when messages.starts_session then messages.message_at end) as session_began_at,
        max(case when messages.turn_number = 1 then messages.side end) as first_side,
        count(messages.reply_number) as replies,
        max(case when messages.reply_number = 1 then messages.reply_seconds end) as first_response_seconds,
        max(messages.fetched_at) as fetched_at
    from {{ messages }} as messages
    {%- if tails %}
    inner join {{ tails }} as tails on tails.chat_id = messages.chat_id and messages.day >= tails.since
    {%- endif %}
    group by messages.chat_id, messages.day, messages.direction, messages.channel, messages.sender
{%- endmacro %}

{# Before int_thread_days is written, delete the days of a chat from the first changed one on: later messages have another
   position now. #}
{% macro cut_days() %}{{ return(adapter.dispatch('cut_days')()) }}{% endmacro %}
{% macro spark__cut_days() %}{% endmacro %}
{% macro default__cut_days() %}
    {%- if is_incremental() %}
    drop table if exists {{ this.identifier }}_tails;
    create temporary table {{ this.identifier }}_tails as
    {{ first_days_to_build() }};
    delete from {{ this }} as built
    using {{ this.identifier }}_tails as tails
    where tails.chat_id = built.chat_id and built.day >= tails.since
    {%- endif %}
{% endmacro %}

{# Select the first day of each chat that this model has to build. #}
{% macro first_days_to_build() -%}
    select chat_id, min(day) as since
    from {{ in_staging('days_to_build') }}
    where mart = '{{ this.identifier }}'
    group by chat_id
{%- endmacro %}

{# Before thread_turns or thread_sessions is written, delete the turns or sessions (numbered by `number`) of a chat that may
   differ: from the last one on that began before the first changed day. It may be longer now, or another may follow it. #}
{% macro cut_numbered(number, began_at) %}{{ return(adapter.dispatch('cut_numbered')(number, began_at)) }}{% endmacro %}
{% macro spark__cut_numbered(number, began_at) %}{% endmacro %}
{% macro default__cut_numbered(number, began_at) %}
    {%- if is_incremental() %}
    drop table if exists {{ this.identifier }}_tails;
    create temporary table {{ this.identifier }}_tails as
    select
        changed.chat_id,
        coalesce(max(before.{{ number }}), 1) as {{ number }},
        coalesce(max(case when before.{{ began_at }} is not null then before.day end), changed.since) as since
    from ({{ first_days_to_build() }}) as changed
    left join {{ ref('int_thread_days') }} as before on before.chat_id = changed.chat_id and before.day < changed.since
    group by changed.chat_id, changed.since;
    delete from {{ this }} as built
    using {{ this.identifier }}_tails as tails
    where tails.chat_id = built.chat_id and built.{{ number }} >= tails.{{ number }} and built.day >= tails.since
    {%- endif %}
{% endmacro %}

{# Select the messages of these turns or sessions. The condition on the day skips most of a large table. #}
{% macro messages_to_number(number) -%}
    select messages.*
    from {{ ref('int_thread_messages') }} as messages
    {%- if is_incremental() %}
    inner join {{ this.identifier }}_tails as tails
        on tails.chat_id = messages.chat_id
        and messages.{{ number }} >= tails.{{ number }}
        and messages.day >= tails.since
    {%- endif %}
    where messages.side is not null
{%- endmacro %}

{# Whether a turn still waits for an answer: nobody can write in a deleted chat, and a silent one is closed. #}
{% macro is_open(turn) -%}
    {{ turn }}.answered_at is null
    and chats.deleted_at is null
    {%- if var('close_after_days') %}
    and not {{ is_closed(turn ~ '.ended_at', 'coverage.as_of') }}
    {%- endif %}
{%- endmacro %}

{# Whether a chat is closed at a time, if its sides have been silent since another. #}
{% macro is_closed(silent_since, at) -%}
    coalesce({{ seconds_between(silent_since, at) }} >= {{ var('close_after_days') }} * 86400, false)
{%- endmacro %}

{# Interval in which all messages of the account have been read: until the newest one, or the latest complete run, but for
   the lookback, within which messages become visible. `as_of` is the time that they show. Always one row. #}
{% macro messages_coverage() -%}
    select
        min(complete_since) as complete_since,
        greatest(max(complete_to), {{ add_seconds('max(as_of)', '-' ~ var('lookback_seconds')) }}) as read_until,
        max(as_of) as as_of,
        cast({{ local_time('max(as_of)') }} as date) as last_day
    from {{ ref('stg_stream_coverage') }}
    where stream = 'messages'
{%- endmacro %}

{# After thread_turns is written, update the open turns of chats that were deleted, came back, or are silent. #}
{% macro update_open_turns() %}{{ return(adapter.dispatch('update_open_turns')()) }}{% endmacro %}
{% macro spark__update_open_turns() %}{% endmacro %}
{% macro default__update_open_turns() %}
    update {{ this }} as turns
    set is_open = not turns.is_open
    from {{ ref('stg_chats') }} as chats
    {%- if var('close_after_days') %}
    cross join ({{ messages_coverage() }}) as coverage
    {%- endif %}
    where
        chats.chat_id = turns.chat_id
        and turns.answered_at is null
        and turns.is_open <> ({{ is_open('turns') }})
{% endmacro %}

{# List the columns of int_thread_messages that daily marts depend on. place_in_thread and gap_seconds are not among them:
   they also change when a message of another day does. #}
{% macro daily_columns() -%}
    chat_id, message_id, from_handle, is_group, message_at, day, weekday, hour, direction, side, channel, sender, is_failed,
    is_delivered, is_read, attachment_count, starts_turn, reply_seconds, fetched_at
{%- endmacro %}

{# After int_thread_messages is written, record the days of each chat on which a message differs from before. #}
{% macro record_days_to_build() %}{{ return(adapter.dispatch('record_days_to_build')()) }}{% endmacro %}
{% macro spark__record_days_to_build() %}{% endmacro %}
{% macro default__record_days_to_build() %}
    {%- set rows_now -%}
        select {{ daily_columns() }}
        from {{ this }} as built
        inner join (select chat_id as thread_id, first_day from {{ in_staging('thread_tails') }}) as tails
            on tails.thread_id = built.chat_id and built.day >= tails.first_day
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
    {%- if adapter.get_relation(this.database, this.schema, 'int_thread_days') %}
    delete from {{ in_staging('int_thread_days') }};
    {%- endif %}
    {%- endif %}
    insert into {{ in_staging('days_to_build') }} (mart, chat_id, from_handle, day)
    select marts.mart, changed.chat_id, changed.from_handle, changed.day
    from (
        {%- if is_incremental() %}
        select chat_id, from_handle, day, is_group from ({{ rows_before }} except {{ rows_now }}) as removed
        union
        select chat_id, from_handle, day, is_group from ({{ rows_now }} except {{ rows_before }}) as added
        {%- else %}
        select distinct chat_id, from_handle, day, is_group from {{ this }}
        {%- endif %}
    ) as changed
    cross join (
        values ('int_thread_days'), ('int_thread_measures'), ('thread_activity_daily'), ('thread_activity_hours'),
            ('number_activity_daily'), ('group_membership'), ('int_typing_spells'), ('thread_turns'),
            ('thread_sessions'), ('delivery_daily'), ('int_contact_replies')
    ) as marts (mart)
    where marts.mart <> 'group_membership' or changed.is_group
    {%- if is_incremental() %};
    {#- delivery_daily also reads columns that int_thread_messages does not have. An event may change only these. #}
    insert into {{ in_staging('days_to_build') }} (mart, chat_id, from_handle, day)
    select distinct 'delivery_daily', built.chat_id, built.from_handle, built.day
    from {{ this }} as built
    inner join {{ in_staging('thread_tails') }} as tails
        on tails.chat_id = built.chat_id and built.day >= tails.first_day
    inner join {{ ref('changed_messages') }} as changed on changed.message_id = built.message_id
    where built.direction = 'outbound'
    {%- endif %}
{% endmacro %}
