"""Token-level shifts: the responses of a set of pairs in other words, another language or form (Section 5.2)."""
