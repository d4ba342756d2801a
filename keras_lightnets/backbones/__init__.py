"""One file per family: rows, SPECS, build(), and the publishers' tensor names."""
