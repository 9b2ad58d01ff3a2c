"""`cads_compare`: does a pre-trained encoder help on one's own labelled data, and by how much.

Cases -> split -> design -> trainings, each in a process of its own -> gains -> report.
"""
