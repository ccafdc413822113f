"""Request, reply and event bodies, one file per service; `schemas.catalog` says which operation uses which."""
