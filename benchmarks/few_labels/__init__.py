"""Parts of `benchmarks/evidence.py`; `head_and_neck` is an experiment of its own."""
