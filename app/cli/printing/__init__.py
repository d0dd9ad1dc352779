"""What commands print, and what may be written to a terminal."""
