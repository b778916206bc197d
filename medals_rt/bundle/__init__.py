"""An exported model on disk: manifest, graphs, engines, recipes."""
