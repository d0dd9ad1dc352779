"""Everything that knows vLLM. Internals are used as of the versions in ``support.SUPPORTED``; each file says which."""
