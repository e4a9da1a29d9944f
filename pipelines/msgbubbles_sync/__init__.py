"""Keeps a warehouse copy of a MsgBubbles account: the job, its commands, and what they stand on."""
