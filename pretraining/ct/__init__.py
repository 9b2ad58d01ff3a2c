"""CT scans: finding them, reading them, and bringing them to one grid."""
