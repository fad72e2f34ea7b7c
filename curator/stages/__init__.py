"""One file, one stage, one YAML in conf/stages. None imports another."""
