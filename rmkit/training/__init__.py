"""Training: one thin trainer a type on TRL, and what they share."""
