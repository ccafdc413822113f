"""Which model answers, and with what options: the rules file, the profiles and the database of limits."""
