select
    handle,
    label,
    status,
    channels,
    extra,
    _fetched_at as fetched_at,
    _dlt_load_id as load_id
from {{ source('msgbubbles', 'numbers') }}
