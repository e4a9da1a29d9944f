select stream, complete_since, complete_to
from {{ loaded_table('stream_coverage', {'stream': 'varchar', 'complete_since': 'timestamptz', 'complete_to': 'timestamptz'}) }}
