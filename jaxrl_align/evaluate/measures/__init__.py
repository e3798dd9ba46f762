"""Pure measures of answers and texts, and the perturbations of what is asked."""
