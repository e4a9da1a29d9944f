-- Grain: one row a stream.
select stream, complete_since, complete_to
from {{ landed('stream_coverage', {'stream': 'varchar', 'complete_since': 'timestamptz', 'complete_to': 'timestamptz'}) }}
