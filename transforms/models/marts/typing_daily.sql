-- Grain: one row a chat and a day on which somebody on the other side began to type. Owner: data team.
-- A view: it counts what is built spell by spell.
{{ config(materialized=view_for_readers()) }}

select
    chat_id,
    day,
    count(*) as spells,
    count(sent_at) as spells_sent,
    count(*) - count(sent_at) as spells_unsent,
    min(started_at) as first_started_at,
    max(last_typing_at) as last_typing_at
from {{ ref('int_typing_spells') }}
group by chat_id, day
