"""Models and their weights: what is published where, how it is checked, loaded and applied."""
