select
    chat_id,
    cast(created_at as date) as day,
    count(*) as messages_total,
    count(*) filter (where direction = 'inbound') as messages_inbound
from "dlt"."marts"."messages"
group by all