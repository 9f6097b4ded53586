"""Helpers that know nothing about models: errors, files, images, devices, processes, plots, text, tables."""
