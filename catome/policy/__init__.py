"""The rules for when pairs are found afresh, and for where merging pays."""
