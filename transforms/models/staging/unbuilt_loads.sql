{{ config(materialized='table') }}

select marts.mart, loads.load_id
from (
    values
    {%- for model in models_by_load() %}
        ('{{ model }}'){{ ',' if not loop.last }}
    {%- endfor %}
) as marts (mart)
cross join {{ ref('loads') }} as loads
left join {{ source('bookkeeping', 'built_loads') }} as built
    on built.mart = marts.mart and built.load_id = loads.load_id
where built.load_id is null
