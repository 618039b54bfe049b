"""What the language model reads and writes: prompts, engines, profiles, vectors."""
