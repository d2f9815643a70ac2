"""How the weights that ship were made; nothing in the package imports it."""
