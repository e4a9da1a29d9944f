select
    chat_id,
    title,
    updated_at,
    _fetched_at as fetched_at,
    _dlt_load_id as load_id
from {{ source('msgbubbles', 'chat_titles') }}
