"""Token-level shifts: the responses of a set rewritten in other words, another language or format (Section 5.2)."""
