"""One `main` per training stage."""
