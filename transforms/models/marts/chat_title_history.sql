-- depends_on: {{ ref('unbuilt_loads') }}
with title_reads as (
    select
        chat_id,
        title,
        fetched_at,
        -- A rename moves updated_at, and later changes may move it further: the rename was at that time or before.
        -- Clocks differ, so limit it to the time of the read that saw the title.
        least(coalesce(updated_at, fetched_at), fetched_at) as renamed_by,
        lag(fetched_at) over (partition by chat_id order by fetched_at) as fetched_before_at,
        lag(title) over (partition by chat_id order by fetched_at) as title_before
    from {{ ref('stg_chat_titles') }}
    {% if is_incremental() -%}
    where chat_id in (select chat_id from {{ ref('stg_chat_titles') }} where load_id in ({{ new_loads() }}))
    {%- endif %}
),

-- Two consecutive reads may see the same title: the second one is not a rename.
titles as (
    select
        chat_id,
        title,
        -- The previous read still saw another title.
        greatest(coalesce(fetched_before_at, renamed_by), renamed_by) as valid_from,
        fetched_at as first_seen_at
    from title_reads
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
