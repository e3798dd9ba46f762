"""Several devices, and several hosts: who does what, and what goes between them."""
