{# Use a model's `+schema` as the schema name, with the account's prefix instead of dbt's. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ var('schema_prefix') ~ ((custom_schema_name or 'staging') | trim) }}
{%- endmacro %}

{% macro in_staging(table) %}{{ var('schema_prefix') }}staging.{{ table }}{% endmacro %}
