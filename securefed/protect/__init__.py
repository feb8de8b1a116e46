"""How updates travel: the client's half of each protection beside the server's."""
