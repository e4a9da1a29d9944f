select
    id as chat_id,
    from_handle,
    remote_handle,
    is_group,
    title,
    last_message_at,
    created_at,
    updated_at,
    deleted_at,
    extra,
    _fetched_at as fetched_at,
    _dlt_load_id as load_id
from {{ source('msgbubbles', 'chats') }}
