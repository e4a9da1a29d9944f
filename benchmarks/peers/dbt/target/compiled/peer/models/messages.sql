

select id, conversation_id as chat_id, direction, status, channel, created_at, delivered_at, read_at, _dlt_load_id
from "dlt"."account"."messages"

where _dlt_load_id > (select coalesce(max(_dlt_load_id), '') from "dlt"."marts"."messages")
