"""The making of the scenes world's generator and rewards."""
