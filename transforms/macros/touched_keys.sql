{# Limit a data test of a large table to the rows that the last run touched, unless `full_tests` is set: the values of
   `where` below stand for conditions. All of them let DuckDB skip most of a table by the time of its rows.

   - touched messages: of those with the id and the time of a changed message. Two that share an id differ in time only if
     the API changed it.
   - touched days: of the chat, from the first day on with a change. Rows of earlier days are as they were,
     and last_message_has_the_number_of_messages checks that positions go on from theirs.
   - touched turns: of the chat, from the last one on that began before the first change. #}

{% macro default__get_where_subquery(relation) -%}
    {%- set where = config.get('where') -%}
    {%- set joins = {
        'touched days': 'tested.day >= tails.first_day',
        'touched turns': 'tested.ended_at >= coalesce(tails.spoke_before_at, tails.since)',
    } -%}
    {%- if where == 'touched messages' -%}
        {%- set where = none if var('full_tests') else
            '(message_id, message_at) in (select message_id, message_at from ' ~ in_staging('changed_messages') ~ ')' -%}
    {%- elif where in joins -%}
        {%- if not var('full_tests') -%}
            {%- do return(
                '(select tested.* from ' ~ relation ~ ' as tested inner join ' ~ in_staging('thread_tails')
                ~ ' as tails on tails.chat_id = tested.chat_id and ' ~ joins[where] ~ ') as touched'
            ) -%}
        {%- endif -%}
        {%- set where = none -%}
    {%- endif -%}
    {%- do return('(select * from ' ~ relation ~ ' where ' ~ where ~ ') as filtered' if where else relation) -%}
{%- endmacro %}
