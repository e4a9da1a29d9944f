-- The current title is the title of the chat.
{{ config(severity="warn") }} -- a title set and replaced within one load may leave half of its rows

select history.chat_id, history.title, chats.title as title_of_chat
from {{ ref('chat_title_history') }} as history
inner join {{ ref('stg_chats') }} as chats on chats.chat_id = history.chat_id
where history.is_current and history.title is distinct from chats.title
