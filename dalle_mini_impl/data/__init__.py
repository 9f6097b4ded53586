"""Captioned pictures: readers, picture store, token cache, augmentation, inspection, and the emoji set."""
