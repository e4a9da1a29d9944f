-- A table, so that all models of a run see the same loads.
{{ config(materialized='table', pre_hook="{{ remove_built_loads() }}") }}

select distinct load_id
from {{ source('msgbubbles', '_dlt_loads') }}
where status = 0
