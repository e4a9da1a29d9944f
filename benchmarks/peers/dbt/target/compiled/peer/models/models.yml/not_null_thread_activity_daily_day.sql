
    
    



select day
from "dlt"."marts"."thread_activity_daily"
where day is null


