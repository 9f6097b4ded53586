"""All stages with one command: a folder of pictures in, a model and a report out. `run.main` is the whole of it."""
