"""Small helpers without any knowledge of models: errors, files, images, devices, processes, plots, text, tables."""
