"""Vector indexes: what writers lay vectors into and a search asks; one file for each kind, met in base.py."""
