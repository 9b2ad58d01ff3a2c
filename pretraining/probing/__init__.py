"""What frozen encoders know: features and probes."""
