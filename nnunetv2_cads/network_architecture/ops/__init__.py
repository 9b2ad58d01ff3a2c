"""Exact, faster forms of single operations, chosen by device and layout."""
