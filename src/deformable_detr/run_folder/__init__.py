"""The contents of a run folder: the log that training writes, and its readers."""
