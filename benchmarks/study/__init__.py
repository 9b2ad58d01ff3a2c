"""Parts of `benchmarks/evidence.py` and `benchmarks/probes.py`."""
