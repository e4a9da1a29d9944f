-- What is known of a chat adds up from these rows, which are far fewer than its messages. An increment writes those of a
-- chat again from the first changed day on.
{{ config(
    incremental_strategy='append',
    pre_hook="{{ cut_days() }}",
    indexes=[{'columns': ['chat_id', 'day']}] if target.type == 'postgres' else []
) }}

{{ sum_days(ref('int_thread_messages'), 'int_thread_days_tails' if is_incremental()) }}
