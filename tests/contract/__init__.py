"""What programs see of the guard through the clients that they use. The clients and the HTTP server are real."""
