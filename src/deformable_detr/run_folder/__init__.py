"""The files of a run folder.

names.py      their names
log.py        the log that training writes
reading.py    readers of the settings, losses, evaluations and starts
lock.py       the lock that keeps two runs from writing to the same folder
"""
