"""`olympus top`: a live view of services, models, jobs and errors, with keys that act on them."""
