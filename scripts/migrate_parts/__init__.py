"""What the migration scripts share: reading old stores without touching them, moving rows, and comparing both sides."""
