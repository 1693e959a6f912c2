"""Crisis screen, answer check, personal data, help lines and required notices."""
