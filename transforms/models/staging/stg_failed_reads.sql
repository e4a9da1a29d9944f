select kind, id as unit_id, since as failed_since
from {{ loaded_table('failed_reads', {'kind': 'varchar', 'id': 'varchar', 'since': 'timestamptz'}) }}
