"""Which unreferenced sealed block of a tier goes first: one port, and the policies behind it."""
