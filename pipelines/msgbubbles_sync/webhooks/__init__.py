"""Receives events by webhook, keeps them on disk, and loads them."""
