"""The site of the documentation: ``mkdocs.yml`` and what it is made with."""
