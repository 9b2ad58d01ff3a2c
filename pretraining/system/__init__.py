"""What is not about CT: commands, errors, files, locks, processes, devices."""
