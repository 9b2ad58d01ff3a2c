"""What a start of the encoder is worth on real head-and-neck CT of which few scans are labelled.

`python -m few_labels.head_and_neck` from the folder `benchmarks`; `__main__` says how.
"""
