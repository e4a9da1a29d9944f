"""A simulated MsgBubbles account, for the demo and as the truth of the tests. Imports nothing of the product."""

from .account import Account, NewMessage
from .knobs import KEY, Knobs
from .listing import Truth
from .seed import advance, seed
from .server import Server, serve

__all__ = ["KEY", "Account", "Knobs", "NewMessage", "Server", "Truth", "advance", "seed", "serve"]
