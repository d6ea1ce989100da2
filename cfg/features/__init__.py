"""The networks whose features the metrics compare, and their weights."""
