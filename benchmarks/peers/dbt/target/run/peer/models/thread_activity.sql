
    

    create  table
      "dlt"."marts"."thread_activity__dbt_tmp"
  
    
    as (
      with in_order as (
    select
        *,
        lag(direction) over (partition by chat_id order by created_at, id) as direction_before,
        lag(created_at) over (partition by chat_id order by created_at, id) as before_at
    from "dlt"."marts"."messages"
)

select
    chats.id as chat_id,
    any_value(chats.title) as title,
    count(in_order.id) as messages_total,
    count(*) filter (where direction = 'inbound') as messages_inbound,
    count(*) filter (where direction = 'outbound') as messages_outbound,
    min(in_order.created_at) as first_message_at,
    max(in_order.created_at) as last_message_at,
    max(in_order.created_at) filter (where direction = 'inbound') as last_inbound_at,
    median(epoch(in_order.created_at - before_at)) filter (
        where direction = 'outbound' and direction_before = 'inbound'
    ) as median_reply_seconds
from "dlt"."account"."chats" as chats
left join in_order on in_order.chat_id = chats.id
group by chats.id
    );
    
  