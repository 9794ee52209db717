"""When pairs are found afresh, and where merging pays."""
