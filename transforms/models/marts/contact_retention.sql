-- A view over contact_monthly.
{{ config(materialized=view_for_readers(), tags='tested_once_a_day') }}

with months as (
    select distinct month from {{ ref('contact_monthly') }}
),

cohorts as (
    select
        first_month,
        count(*) as contacts
    from {{ ref('contact_monthly') }}
    where month = first_month
    group by first_month
),

active as (
    select
        first_month,
        month,
        count(case when messages_inbound > 0 then 1 end) as contacts_active
    from {{ ref('contact_monthly') }}
    group by first_month, month
)

select
    cohorts.first_month,
    months.month,
    {{ months_between('cohorts.first_month', 'months.month') }} as months_since_first,
    cohorts.contacts,
    coalesce(active.contacts_active, 0) as contacts_active,
    {{ as_double('coalesce(active.contacts_active, 0)') }} / cohorts.contacts as retention_rate
from cohorts
inner join months on months.month >= cohorts.first_month
left join active on active.first_month = cohorts.first_month and active.month = months.month
