"""What a run leaves on disk: its directory, checkpoints, digests and manifest. Reading one needs no JAX."""
