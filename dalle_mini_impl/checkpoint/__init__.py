"""Checkpoint folders: their files, settings and identities, and exchange with a hub. Knows no network."""
