{# Check that the ranges of a partition do not overlap. `gaps: not_allowed` also checks that each range ends where the
   next one begins, and that the last one is open; a range may then be empty. #}
{% test mutually_exclusive_ranges(model, partition_by, lower_bound_column, upper_bound_column, gaps='allowed') %}
select *
from (
    select
        {{ partition_by }},
        {{ lower_bound_column }},
        {{ upper_bound_column }},
        lead({{ lower_bound_column }}) over (
            partition by {{ partition_by }} order by {{ lower_bound_column }}, {{ upper_bound_column }} nulls last
        ) as next_lower_bound
    from {{ model }}
) as ranges
where
    {%- if gaps == 'not_allowed' %}
    {{ upper_bound_column }} is distinct from next_lower_bound
    {%- else %}
    next_lower_bound is not null
    and ({{ upper_bound_column }} is null or {{ upper_bound_column }} > next_lower_bound)
    {%- endif %}
{% endtest %}
