{# Of a key, each interval ends before the next begins, or where it does. #}
{% test intervals_do_not_overlap(model, key, valid_from, valid_to) %}
select *
from (
    select
        {{ key }},
        {{ valid_from }},
        {{ valid_to }},
        lead({{ valid_from }}) over (partition by {{ key }} order by {{ valid_from }}) as next_from
    from {{ model }}
) as intervals
where next_from is not null and ({{ valid_to }} is null or {{ valid_to }} > next_from)
{% endtest %}
