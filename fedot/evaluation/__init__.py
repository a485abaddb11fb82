"""Quality numbers."""
