"""The MsgBubbles API: a client (`msgbubbles.client`), and a dlt source (`msgbubbles.source`) built on it."""

from .client import BASE_URL, Client

__all__ = ["BASE_URL", "Client"]
