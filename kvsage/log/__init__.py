"""The log: segments of chained, checksummed batches. What is live in it, it does not know."""
