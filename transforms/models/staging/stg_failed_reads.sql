-- Grain: one row a unit that could not be read.
select kind, id as unit_id, since as failed_since
from {{ landed('failed_reads', {'kind': 'varchar', 'id': 'varchar', 'since': 'timestamptz'}) }}
