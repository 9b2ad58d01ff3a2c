"""Parts of `benchmarks/evidence.py` and `pretraining/probe.py`."""
