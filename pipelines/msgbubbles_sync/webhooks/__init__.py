"""Receive webhook events, store them on disk, and load them into the warehouse."""
