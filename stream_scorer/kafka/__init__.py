"""Everything that touches a broker."""
