"""The networks, readable alone."""
