-- Grain: one row a finished load. A table, so that all marts of a run see the same loads.
{{ config(materialized='table') }}

select distinct load_id
from {{ source('msgbubbles', '_dlt_loads') }}
where status = 0
