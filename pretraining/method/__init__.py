"""CADS: student and teacher, heads, loss, schedules and the training step."""
