"""What is done with a prompt: given text is read, the assistant's turn in it found, its cached prefix kept apart."""
