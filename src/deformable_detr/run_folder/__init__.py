"""What a run folder holds: the log that training writes and its readers."""
