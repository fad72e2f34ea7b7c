"""The configs that ship with Curator; the file makes the folder a package, which an installed Hydra needs."""
