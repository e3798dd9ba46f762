"""PEFT folders in and out: the configuration, the patterns of target layers, the tensors."""
