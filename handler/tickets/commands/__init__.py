"""The commands of `tickets`: one module per group, registered in handler.tickets.command."""
