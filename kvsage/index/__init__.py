"""The index: LMDB maps from keys to places in the log. All of it can be built anew from the log."""
