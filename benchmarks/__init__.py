"""What is fast, by how much, against whom: `python -m benchmarks`."""
