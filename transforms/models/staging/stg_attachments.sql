select
    id as attachment_id,
    message_id,
    filename,
    mime_type,
    size_bytes,
    created_at,
    removed_at,
    extra,
    _fetched_at as fetched_at,
    _dlt_load_id as load_id
from {{ source('msgbubbles', 'attachments') }}
