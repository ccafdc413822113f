"""What was asked and answered in live traffic, kept for a while."""
