"""Curator: large image collections in, curated datasets out."""
