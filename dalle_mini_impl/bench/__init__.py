"""What `dalle bench` and `dalle compare` measure: machine limits, peers, rows."""
