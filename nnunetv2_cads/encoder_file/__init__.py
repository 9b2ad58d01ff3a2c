"""The encoder file: its record, reading and writing."""
