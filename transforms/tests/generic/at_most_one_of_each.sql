{# Of each key, the condition holds for no more than one row. #}
{% test at_most_one_of_each(model, key, condition) %}
select {{ key }}
from {{ model }}
group by {{ key }}
having count(case when {{ condition }} then 1 end) > 1
{% endtest %}
