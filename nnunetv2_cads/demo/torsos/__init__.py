"""Synthetic torsos: CT scans with labels, made by formulas."""
