
        
            delete from "dlt"."marts"."messages"
            where (
                id) in (
                select (id)
                from "messages__dbt_tmp20261126032013012088"
            );

        
    

    insert into "dlt"."marts"."messages" ("id", "chat_id", "direction", "status", "channel", "created_at", "delivered_at", "read_at", "_dlt_load_id")
    (
        select "id", "chat_id", "direction", "status", "channel", "created_at", "delivered_at", "read_at", "_dlt_load_id"
        from "messages__dbt_tmp20261126032013012088"
    )
  