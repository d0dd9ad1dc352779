"""Everything that knows vLLM. Internals are used as of the versions in ``guard.versions``; each file says which."""
