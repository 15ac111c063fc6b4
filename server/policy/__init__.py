"""Who may do what: API keys and their scopes, and the rules for the safety switch."""
