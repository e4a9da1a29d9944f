-- A view: attachments are fewer than messages, and change with none of the loads that the daily marts follow.
{{ config(materialized=view_for_readers(), tags='tested_once_a_day') }}

select
    messages.from_handle,
    messages.day,
    messages.direction,
    lower(split_part(attachments.mime_type, '/', 1)) as kind,
    count(*) as attachments,
    count(distinct messages.message_id) as messages_with_attachment,
    cast(sum(attachments.size_bytes) as bigint) as size_bytes
from {{ ref('stg_attachments') }} as attachments
inner join {{ ref('int_thread_messages') }} as messages on messages.message_id = attachments.message_id
where attachments.removed_at is null and messages.from_handle is not null
group by messages.from_handle, messages.day, messages.direction, lower(split_part(attachments.mime_type, '/', 1))
