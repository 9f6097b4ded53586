"""Files of other projects -> parts of a checkpoint, one module per format."""
