"""The log: segments of chained, checksummed batches. It knows nothing of keys being live or dead."""
