
    
    



select id
from "dlt"."marts"."messages"
where id is null


