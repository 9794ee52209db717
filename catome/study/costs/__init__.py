"""The cost of a study, and the parts of a generation's time: counted, not timed."""
