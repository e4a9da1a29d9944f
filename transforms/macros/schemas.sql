{# A model's `+schema` is the name of its schema, with no prefix but that of an account. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ var('schema_prefix') ~ ((custom_schema_name or 'staging') | trim) }}
{%- endmacro %}

{% macro in_staging(table) %}{{ var('schema_prefix') }}staging.{{ table }}{% endmacro %}
