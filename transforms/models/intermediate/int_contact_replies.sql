-- depends_on: {{ ref('chats_to_build') }}, {{ ref('unbuilt_loads') }}
-- A chat that no longer has a contact yields a row without one, which replaces the old row and is deleted by the hook.
{{ config(post_hook="{{ delete_where('handle is null') }}") }}

{%- set contacts -%}
    select
        chats.chat_id,
        case
            when not chats.is_group then coalesce(aliases.contact_key, {{ folded_handle('chats.remote_handle') }})
        end as handle
    from {{ ref('stg_chats') }} as chats
    left join {{ ref('stg_contact_aliases') }} as aliases
        on aliases.handle = {{ folded_handle('chats.remote_handle') }}
{%- endset %}

with
{%- if is_incremental() %}
changed as (
    select chat_id from {{ ref('chats_to_build') }} where mart = 'int_contact_replies'
    union
    select chat_id from {{ source('bookkeeping', 'days_to_build') }} where mart = 'int_contact_replies'
    union
    select chats.chat_id
    from {{ ref('stg_contact_aliases') }} as aliases
    inner join {{ ref('stg_chats') }} as chats on {{ folded_handle('chats.remote_handle') }} = aliases.handle
    where aliases.load_id in ({{ new_loads() }})
),

changed_chats as (
    {{ contacts }}
    where chats.chat_id in (select chat_id from changed)
),

-- A chat that has moved from one contact to another changes both. All other chats still have theirs: folding the handle of
-- every chat takes longer than anything else here.
chats as (
    select chat_id, handle from changed_chats
    union all
    select chat_id, handle
    from {{ this }}
    where
        chat_id not in (select chat_id from changed)
        and handle in (
            select handle from changed_chats
            union
            select handle from {{ this }} where chat_id in (select chat_id from changed)
        )
),
{%- else %}
chats as (
    select * from ({{ contacts }}) as contacts where handle is not null
),
{%- endif %}

replies as (
    select
        chats.handle,
        {{ as_double("count(case when turns.side = 'them' then turns.answered_at end)") }}
        / nullif(count(case when turns.side = 'them' then 1 end), 0) as our_answer_rate,
        {{ percentile(0.5, "case when turns.side = 'them' then turns.reply_seconds end") }} as our_median_reply_seconds,
        {{ percentile(0.5, "case when turns.side = 'them' then turns.business_reply_seconds end") }}
            as our_median_business_reply_seconds,
        {{ as_double("count(case when turns.side = 'us' then turns.answered_at end)") }}
        / nullif(count(case when turns.side = 'us' then 1 end), 0) as their_answer_rate,
        {{ percentile(0.5, "case when turns.side = 'us' then turns.reply_seconds end") }} as their_median_reply_seconds
    from {{ ref('thread_turns') }} as turns
    inner join chats on chats.chat_id = turns.chat_id
    where chats.handle is not null
    group by chats.handle
)

select
    chats.chat_id,
    chats.handle,
    replies.our_answer_rate,
    replies.our_median_reply_seconds,
    replies.our_median_business_reply_seconds,
    replies.their_answer_rate,
    replies.their_median_reply_seconds
from chats
left join replies on replies.handle = chats.handle
{%- if target.type == 'spark' %}
where chats.handle is not null
{%- endif %}
