"""Near pairs among stored vectors, found exactly, and who stays for whom."""
