"""Turn trained Medal S checkpoints into bundles that `medals_rt` runs. Needs torch."""
