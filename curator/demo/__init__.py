"""The demo: pictures that Curator draws itself, and a small open_clip model that was trained on such pictures."""
