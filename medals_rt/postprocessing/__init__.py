"""From raw labels to the result: connected components and Algorithm 3."""
