"""The benchmark: the chain protocol, the peers, the streaming probe, records and plots."""
