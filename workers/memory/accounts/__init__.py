"""Users, tokens and trust: who may ask for what, and how much. Start reading at accounts.py."""
