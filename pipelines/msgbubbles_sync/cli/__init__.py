"""The commands: `chats`, `groups` and `webhooks`."""
