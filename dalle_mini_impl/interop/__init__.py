"""Files of other projects -> parts of ours, one module per format."""
