{# Limit a data test of a large table to the keys that the last run touched, unless `full_tests` is set: the values of
   `where` below stand for conditions. A test checks all rows with these keys, so it finds what it would find among all. #}

{% macro default__get_where_subquery(relation) -%}
    {%- set conditions = {
        'touched messages': 'message_id in (select message_id from ' ~ in_staging('changed_messages') ~ ')',
        'touched chats': 'chat_id in (select chat_id from ' ~ in_staging('thread_tails') ~ ')',
    } -%}
    {%- set where = config.get('where') -%}
    {%- if where and not (where in conditions and var('full_tests')) -%}
        {%- do return('(select * from ' ~ relation ~ ' where ' ~ conditions.get(where, where) ~ ') as touched') -%}
    {%- endif -%}
    {%- do return(relation) -%}
{%- endmacro %}
