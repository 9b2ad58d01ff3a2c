"""From a store to batches of training views."""
