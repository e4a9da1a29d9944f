
    
    



select chat_id
from "dlt"."marts"."thread_activity"
where chat_id is null


