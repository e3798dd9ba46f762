"""What a language model writes: generation, and completions of prompts."""
