"""What a round means: what is trained and sent, and how the server applies the aggregate."""
