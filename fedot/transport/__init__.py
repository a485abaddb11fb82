"""gRPC, TLS, transfers. No torch here."""
