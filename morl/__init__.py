"""What to train next: PGMORL as ask and tell, from evaluated returns alone."""
