"""Captioned pictures: readers, picture store, token cache, augmentation, inspection."""
