{# Use a model's `+schema` as the schema name, with the account's prefix instead of dbt's. A model must not replace a
   loaded table. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {%- set name = (custom_schema_name or 'staging') | trim -%}
    {%- if name in (var('raw_schema'), var('raw_schema') ~ '_staging') -%}
        {{ exceptions.raise_compiler_error('the schema ' ~ name ~ ' has the loaded tables: choose another', node) }}
    {%- endif -%}
    {{ in_marts() if name == 'marts' else var('schema_prefix') ~ (var('staging_schema') if name == 'staging' else name) }}
{%- endmacro %}

{% macro in_staging(table) %}{{ var('schema_prefix') }}{{ var('staging_schema') }}.{{ table }}{% endmacro %}
{% macro in_marts() %}{{ return(var('schema_prefix') ~ var('marts_schema')) }}{% endmacro %}
