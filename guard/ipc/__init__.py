"""What the API process and the workers say to each other: parameters of a request, shared memory, start-up."""
