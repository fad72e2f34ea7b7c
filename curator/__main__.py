"""`python -m curator` is `curate`."""

from curator.cli import script

if __name__ == "__main__":
    script()
