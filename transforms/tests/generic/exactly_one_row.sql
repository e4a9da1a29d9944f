{# Check that an expression is true for exactly one row per partition. #}
{% test exactly_one_row(model, partition_by, expression) %}
select {{ partition_by }}
from {{ model }}
group by {{ partition_by }}
having count(case when {{ expression }} then 1 end) <> 1
{% endtest %}
