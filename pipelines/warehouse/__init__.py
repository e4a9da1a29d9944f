"""What happens around the load: where files are, one job at a time, the marts, and the file that readers open."""
