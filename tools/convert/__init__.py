"""Scripts that make stored reference data."""
