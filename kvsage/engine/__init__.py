"""The engine: commits into the log, with an index over it, for many processes at once."""
