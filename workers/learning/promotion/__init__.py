"""Puts a trained adapter to work: attached, compared with PEFT, promoted, watched, and taken back if it was wrong."""
