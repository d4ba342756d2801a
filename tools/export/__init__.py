"""Files for devices, and the proof that they work."""
