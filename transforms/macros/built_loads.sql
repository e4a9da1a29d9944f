{# Which loads each mart holds. Written in the transaction that writes the mart, so the two cannot disagree. #}

{% macro create_built_loads() %}
    create schema if not exists staging;
    create table if not exists staging.built_loads (
        mart varchar(200) not null,
        load_id varchar(200) not null
    );
{% endmacro %}

{% macro remember_loads() %}
    insert into staging.built_loads (mart, load_id)
    select '{{ this.identifier }}', load_id
    from staging.loads
    where load_id not in (select load_id from staging.built_loads where mart = '{{ this.identifier }}')
{% endmacro %}
