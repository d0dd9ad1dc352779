"""Before any route: who may come in, how many at once, and how large a body may be."""
