-- Rows are grouped by the folded handle, or by the contact that has it in the list, and show one of the spellings.
-- A view over tables that are built per chat, so it needs no increments of its own.
{{ config(materialized=view_for_readers(), tags='tested_once_a_day') }}

with aliases as (
    select handle, contact, contact_key
    from {{ ref('stg_contact_aliases') }}
    where contact is not null
),

direct as (
    select
        replies.handle,
        max(threads.remote_handle) as spelling,
        count(*) as threads,
        min(first_message_at) as first_contact_at,
        max(latest_message_at) as last_contact_at,
        cast(sum(messages_inbound) as bigint) as messages_inbound,
        cast(sum(messages_outbound) as bigint) as messages_outbound,
        max(case when messages_imessage > 0 then 'imessage' end) as imessage,
        max(case when messages_sms > 0 then 'sms' end) as sms,
        max(case when messages_whatsapp > 0 then 'whatsapp' end) as whatsapp,
        count(case when waiting_on = 'us' then 1 end) as threads_waiting_on_us,
        count(case when waiting_on = 'them' then 1 end) as threads_waiting_on_them,
        min(unanswered_since) as unanswered_since,
        max(last_inbound_at) as last_inbound_at,
        max(last_outbound_at) as last_outbound_at,
        cast(sum(our_replies) as bigint) as our_replies,
        cast(sum(their_replies) as bigint) as their_replies,
        -- All chats of a contact have the same.
        max(replies.our_answer_rate) as our_answer_rate,
        max(replies.our_median_reply_seconds) as our_median_reply_seconds,
        max(replies.our_median_business_reply_seconds) as our_median_business_reply_seconds,
        max(replies.their_answer_rate) as their_answer_rate,
        max(replies.their_median_reply_seconds) as their_median_reply_seconds
    from {{ ref('thread_activity') }} as threads
    inner join {{ ref('int_contact_replies') }} as replies on replies.chat_id = threads.chat_id
    group by replies.handle
),

in_groups as (
    select
        coalesce(aliases.contact_key, {{ folded_handle('members.handle') }}) as handle,
        max(members.handle) as spelling,
        count(distinct members.chat_id) as groups_ever,
        count(distinct case when members.is_current then members.chat_id end) as groups_current,
        min(members.first_seen_at) as first_seen_at,
        max(members.last_seen_at) as last_seen_at,
        cast(sum(members.message_count) as bigint) as messages_in_groups
    from {{ ref('group_membership') }} as members
    left join aliases on aliases.handle = {{ folded_handle('members.handle') }}
    group by coalesce(aliases.contact_key, {{ folded_handle('members.handle') }})
),

handles as (
    select handle from direct
    union
    select handle from in_groups
)

select
    coalesce(direct.spelling, in_groups.spelling) as handle,
    contacts.contact,
    coalesce(direct.threads, 0) as threads,
    coalesce(direct.threads_waiting_on_us, 0) as threads_waiting_on_us,
    coalesce(direct.threads_waiting_on_them, 0) as threads_waiting_on_them,
    direct.unanswered_since,
    coalesce(in_groups.groups_ever, 0) as groups_ever,
    coalesce(in_groups.groups_current, 0) as groups_current,
    least(direct.first_contact_at, in_groups.first_seen_at) as first_contact_at,
    greatest(direct.last_contact_at, in_groups.last_seen_at) as last_contact_at,
    direct.messages_inbound,
    direct.messages_outbound,
    direct.last_inbound_at,
    direct.last_outbound_at,
    direct.our_replies,
    direct.their_replies,
    direct.our_answer_rate,
    direct.our_median_reply_seconds,
    direct.our_median_business_reply_seconds,
    direct.their_answer_rate,
    direct.their_median_reply_seconds,
    in_groups.messages_in_groups,
    nullif(concat_ws(',', direct.imessage, direct.sms, direct.whatsapp), '') as channels
from handles
left join direct on direct.handle = handles.handle
left join in_groups on in_groups.handle = handles.handle
left join (select distinct contact, contact_key from aliases) as contacts on contacts.contact_key = handles.handle
where handles.handle not in ({{ own_handles() }})
