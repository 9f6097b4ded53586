"""What several tests use: small models, slow references, files of other projects, training runs."""
