{# Store descriptions as comments of relations and columns, in one statement per relation. Tables keep their comments, so
   an incremental run sets none; the job rebuilds everything when a description changes. #}
{% macro default__persist_docs(relation, model, for_relation, for_columns) %}
    {%- if not is_incremental() %}
    {% do run_query(comments(relation, model)) %}
    {%- endif %}
{% endmacro %}

{# Parquet files have no comments. #}
{% macro spark__persist_docs(relation, model, for_relation, for_columns) %}{% endmacro %}

{% macro comments(relation, model) -%}
    comment on {{ relation.type }} {{ relation }} is {{ comment_literal(model.description) }};
    {%- if not (relation.is_view and target.name == 'ducklake') -%}{# a view of a lake has no comments on columns #}
    {%- for column in model.columns.values() %}
    comment on column {{ relation }}.{{ adapter.quote(column.name) }} is {{ comment_literal(column.description) }};
    {%- endfor %}
    {%- endif %}
{%- endmacro %}

{% macro comment_literal(description) -%}
    '{{ description.split() | join(" ") | replace("'", "''") }}'
{%- endmacro %}
