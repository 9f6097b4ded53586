"""Checkpoint folders: their files, settings and identities; fetched from and sent to a hub."""
