"""What several tests use: accounts, jobs, warehouses and servers to run against."""
