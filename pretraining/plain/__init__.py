"""CADS written plainly: to read first, and for tests to compare with."""
