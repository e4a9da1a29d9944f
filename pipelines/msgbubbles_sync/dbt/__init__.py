"""Builds the marts: dbt, run in this process."""
