"""Networks of other projects, whose weights are imported."""
