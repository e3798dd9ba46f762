"""Tasks as data: their files, rows and items, and prompts with examples."""
