-- A table, so that all models of a run see the same loads.
{{ config(materialized='table') }}

select distinct load_id
from {{ source('msgbubbles', '_dlt_loads') }}
where status = 0
