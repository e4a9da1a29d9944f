-- Positions in a chat go on from those of the days before, which are not read again.
select chat_id
from {{ ref('int_thread_days') }}
group by chat_id
having max(place_in_thread) <> sum(messages_total)
