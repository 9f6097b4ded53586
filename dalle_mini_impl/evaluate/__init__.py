"""What `dalle evaluate` measures."""
