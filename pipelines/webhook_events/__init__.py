"""Webhook deliveries: received and kept on disk, brought into the warehouse, and what follows from them."""
