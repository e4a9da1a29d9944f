with coverage as (
    select stream, complete_since, complete_to
    from {{ loaded_table('stream_coverage', {'stream': 'varchar', 'complete_since': 'timestamptz', 'complete_to': 'timestamptz'}) }}
),

runs as ( -- always one row
    select max(started_at) as started_at
    from {{ loaded_table('sync_runs', {'started_at': 'timestamptz', 'outcome': 'varchar'}) }}
    where outcome = 'complete'
)

select
    coverage.stream,
    coverage.complete_since,
    coverage.complete_to,
    case
        when coverage.complete_to is not null then greatest(coverage.complete_to, runs.started_at)
    end as as_of
from coverage
cross join runs
