"""A MsgBubbles account on this machine: the demo's, and the tests' truth. It imports nothing of the product."""

from .account import Account, NewMessage
from .knobs import KEY, Knobs
from .listing import Truth
from .seed import advance, seed
from .server import Server, serve

__all__ = ["KEY", "Account", "Knobs", "NewMessage", "Server", "Truth", "advance", "seed", "serve"]
