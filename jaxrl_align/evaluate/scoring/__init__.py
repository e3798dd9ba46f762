"""What a model says of texts and options: likelihoods, rules that choose, generation with stops."""
