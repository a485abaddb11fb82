"""One run: rounds, server state, plug-in at the end."""
