"""Decides what to train next: PGMORL as ask and tell, from evaluated returns alone."""
