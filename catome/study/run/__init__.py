"""Running a study: its parameters, generation, the store of rows, and how processes share the work."""
