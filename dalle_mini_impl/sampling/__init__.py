"""Text ids -> image ids: the decode loop, its choice of the next id, and compiled code for it."""
