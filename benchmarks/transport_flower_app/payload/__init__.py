"""A Flower app that moves one array."""
