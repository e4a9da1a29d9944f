"""The dlt source for MsgBubbles: chats, messages (with their attachments) and numbers.

import dlt
from msgbubbles.source import msgbubbles_source

pipeline = dlt.pipeline("conversations", destination="duckdb", dataset_name="msgbubbles")
pipeline.run(msgbubbles_source())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgbubbles.client import BASE_URL, Client

from .run import Run

if TYPE_CHECKING:
    from .dlt_source import msgbubbles_source
else:

    def __getattr__(name):
        if name != "msgbubbles_source":
            raise AttributeError(name)
        from .dlt_source import msgbubbles_source  # it imports dlt

        return msgbubbles_source


__all__ = ["BASE_URL", "Client", "Run", "msgbubbles_source"]
