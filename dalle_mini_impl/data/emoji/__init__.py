"""The emoji set: art of several vendors and captions in 24 languages, built from packages."""
