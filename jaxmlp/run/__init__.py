"""What does a run leave on disk, and how is damage found? Nothing here needs JAX to read a run."""
