"""What a study costs, and where the time of a generation goes: counted, not timed."""
