"""Asking a finished run: text or an image in, the nearest images out, as a table and a gallery."""
