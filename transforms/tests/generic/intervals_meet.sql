{# The intervals of a key neither overlap nor leave a gap: each ends where the next begins, and the last is open. #}
{% test intervals_meet(model, key, valid_from, valid_to) %}
select *
from (
    select
        {{ key }},
        {{ valid_to }},
        lead({{ valid_from }}) over (
            partition by {{ key }} order by {{ valid_from }}, {{ valid_to }} nulls last
        ) as next_from
    from {{ model }}
) as intervals
where {{ valid_to }} is distinct from next_from
{% endtest %}
