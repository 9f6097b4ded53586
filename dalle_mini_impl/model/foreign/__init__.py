"""Networks of other projects, for imported weights."""
