"""What guards a run: its folder against a second process, its state against signals, memory and numbers."""
