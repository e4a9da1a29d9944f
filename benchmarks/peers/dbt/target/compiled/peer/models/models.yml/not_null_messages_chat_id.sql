
    
    



select chat_id
from "dlt"."marts"."messages"
where chat_id is null


