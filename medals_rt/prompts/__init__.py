"""From sentences to classes and their text embeddings."""
