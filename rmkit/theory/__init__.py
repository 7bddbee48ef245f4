"""The paper's theory as functions, computed on a model and data of your own (Sections 3.1 and 4, Appendices A and B).

dynamics.py        Eq. 4, 5 and 8: what one gradient step on a pair does to the reward of any response
separator.py       Eq. 6: the max-margin separator of hidden states; footnote 3
unseen_tokens.py   Theorem 2, by simulation or on hidden states
verification.py    Theorem 1 and Corollary 1, on graphs small enough to enumerate all answers
frozen.py          hidden states under Assumption 1, and actual gradient steps
experiment.py      the dynamics over the pairs of a set
model_dynamics.py  the dynamics of a language model, a trained reward model, or a run before and after training
single_tokens.py   pairs with single-token responses, for Theorem 2
loading.py         language models and trained reward models, loaded for the theory

No drawing and no files here: rmkit/report/theory_summary.py and theory_figures.py make tables and figures.
"""
