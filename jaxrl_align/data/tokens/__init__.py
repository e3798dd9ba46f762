"""How text becomes tokens: tokenizers, chat templates, packed rows, and token files larger than memory."""
