"""What shows that bits are the same: comparing trees, re-hashing a run, training it again, and reference digests."""
