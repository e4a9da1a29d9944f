{# Use a model's `+schema` as the schema name, with the account's prefix instead of dbt's. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {%- set name = (custom_schema_name or 'staging') | trim -%}
    {{ in_marts() if name == 'marts' else var('schema_prefix') ~ (var('staging_schema') if name == 'staging' else name) }}
{%- endmacro %}

{% macro in_staging(table) %}{{ var('schema_prefix') }}{{ var('staging_schema') }}.{{ table }}{% endmacro %}
{% macro in_marts() %}{{ return(var('schema_prefix') ~ var('marts_schema')) }}{% endmacro %}
