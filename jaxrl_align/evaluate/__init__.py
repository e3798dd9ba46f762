"""What a trained model can do, measured: the likelihood of texts, and counting models to compare with."""
