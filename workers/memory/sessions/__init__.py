"""Sessions of users, what their models are shown of them, and what is noticed in them."""
