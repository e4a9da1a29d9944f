-- Grain: one row a chat and a time for which it had one title. Owner: data team.
-- depends_on: {{ ref('chats_to_build') }}
with readings as (
    select
        chat_id,
        title,
        fetched_at,
        -- A rename moves updated_at, and so may what comes after it: the rename was then or before. Clocks differ, so
        -- it is never later than the read that saw it.
        least(coalesce(updated_at, fetched_at), fetched_at) as renamed_by,
        lag(fetched_at) over (partition by chat_id order by fetched_at) as fetched_before_at,
        lag(title) over (partition by chat_id order by fetched_at) as title_before
    from {{ ref('stg_chat_titles') }}
    {% if is_incremental() -%}
    where chat_id in (select chat_id from {{ ref('chats_to_build') }} where mart = 'chat_title_history')
    {%- endif %}
),

-- Two readings in a row may show one title: the second is no rename, and says how long the title was there at least.
titles as (
    select
        chat_id,
        title,
        -- The reading before still saw another title.
        greatest(coalesce(fetched_before_at, renamed_by), renamed_by) as valid_from,
        fetched_at as first_seen_at
    from readings
    where fetched_before_at is null or title is distinct from title_before
),

intervals as (
    select
        chat_id,
        title,
        valid_from,
        lead(valid_from) over (partition by chat_id order by first_seen_at) as valid_to,
        first_seen_at
    from titles
)

select
    chat_id,
    title,
    valid_from,
    valid_to,
    valid_to is null as is_current,
    first_seen_at
from intervals
