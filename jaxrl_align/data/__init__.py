"""Host-side data: tokenizers, corpora, demonstrations and comparisons, as numpy arrays."""
