"""The paper's theory as functions that compute it on a given model and data (Sections 3.1 and 4, Appendices A and B).

dynamics.py        Eq. 4, 5 and 8: what one gradient step on a pair does to the reward of any response
separator.py       Eq. 6: the max-margin separator of hidden states, footnote 3
unseen_tokens.py   Theorem 2, by simulation and on a model's own hidden states
verification.py    Theorem 1 and Corollary 1, on graphs small enough to enumerate all answers
frozen.py          hidden states under Assumption 1, and gradient steps that are really taken
experiment.py      the dynamics over the pairs of a set
summary.py         each result as tables: for the terminal and for reports (no torch)
figures.py         each result as figures
"""
