-- The inverse of the relationships: every chat is in thread_activity, and every group with a number of ours has a member.
select chats.chat_id
from {{ ref('stg_chats') }} as chats
left join {{ ref('thread_activity') }} as threads on threads.chat_id = chats.chat_id
left join (select distinct chat_id from {{ ref('group_membership') }}) as members on members.chat_id = chats.chat_id
where
    threads.chat_id is null
    or (chats.is_group and chats.from_handle is not null and members.chat_id is null)
