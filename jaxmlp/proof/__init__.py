"""How are bits proved? By comparing trees, hashing a run again, training it again, and reference digests."""
